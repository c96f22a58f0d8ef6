"""Times of the steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.autograd import Variable

from tests.support import toy_task
from tests.support.training import Ranks, lines, recipe, train
from train.recipe import Recipe
from train.trainer import throughput
from train.trainer.throughput import Throughput


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, which only the test moves on."""
    now = [1000.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_shares_of_an_interval(now: list[float]) -> None:
    clock = Throughput(torch.device("cpu"))
    for _ in range(2):
        with clock.step():
            with clock.waiting():
                now[0] += 0.25
            now[0] += 0.75
    now[0] += 2.0
    figures = clock.interval(12)
    assert figures["step_s"] == 1.0 and figures["data_wait"] == 0.25
    assert figures["samples_per_s"] == 12 / 4.0  # what is not a step counts, too
    assert 0.05 < figures["memory_gb"] < 50


def test_an_interval_begins_anew(now: list[float]) -> None:
    clock = Throughput(torch.device("cpu"))
    with clock.step(), clock.waiting():
        now[0] += 0.5
    clock.interval(1)
    with clock.step():
        now[0] += 0.5
    figures = clock.interval(1)
    assert figures["data_wait"] == 0.0 and figures["step_s"] == 0.5 and figures["samples_per_s"] == 2.0


def test_shares_of_copies_and_checkpoints(now: list[float]) -> None:
    clock = Throughput(torch.device("cpu"))
    with clock.step():
        with clock.on_device("to_device"):
            now[0] += 0.25
        with clock.on_device("all_reduce"):
            now[0] += 0.5
        now[0] += 0.25
    with clock.checkpointing():
        now[0] += 3.0
    figures = clock.interval(1)
    assert (figures["to_device"], figures["all_reduce"], figures["data_wait"]) == (0.25, 0.5, 0.0)
    assert figures["checkpoint_wait"] == 0.75 and figures["step_s"] == 1.0


def test_only_the_end_of_a_backward_pass_counts_as_exchange(now: list[float]) -> None:
    """The time after all gradients are there, when callbacks of the pass wait for the other ranks."""
    clock = Throughput(torch.device("cpu"))
    weight = torch.ones((), requires_grad=True)

    def wait() -> None:
        now[0] += 3.0

    def work(gradient: torch.Tensor) -> None:
        now[0] += 1.0
        Variable._execution_engine.queue_callback(wait)

    weight.register_hook(work)
    for exchanges in (True, False):
        with clock.step():
            clock.backward(weight * 2, exchanges=exchanges)
        assert clock.interval(1)["all_reduce"] == (0.75 if exchanges else 0.0)


class Late(toy_task.ToyTask):
    """Its loss takes long on rank 1."""

    def loss(self, module: Any, batch: Any, **about: Any) -> Any:
        if dist.get_rank() == 1:
            time.sleep(0.05)
        return super().loss(module, batch, **about)


def train_late(path: Path, chosen: Recipe) -> None:
    train(path, chosen, task=Late(chosen.config, "none", path))


def test_who_waits_for_a_slow_rank_sees_it_in_the_exchange(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe(microbatch=1)
    ranks.run(train_late, tmp_path / "run", chosen)
    train(tmp_path / "alone", chosen)
    # Two microbatches a step, and rank 0 waits for the other in the backward pass of the last one.
    assert all(line["all_reduce"] > 0.5 for line in lines(tmp_path / "run"))
    assert all(line["all_reduce"] < 0.5 for line in lines(tmp_path / "alone"))
    assert {name for line in lines(tmp_path / "run") for name in line} == {
        name for line in lines(tmp_path / "alone") for name in line
    }
