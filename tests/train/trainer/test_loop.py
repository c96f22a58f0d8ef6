"""The loop on one rank: what a step is, and that a training goes on where it ended."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shards.loader import ClipLoader
from tests.support import toy_task
from tests.support.training import assert_same, batches_of, lines, losses_of, recipe, start, train, trainer_of
from train.trainer import loop
from train.trainer.port import Interrupted, LocalPort
from train.trainer.throughput import TIMES


def test_accumulation_is_a_bigger_batch(tmp_path: Path) -> None:
    one = train(tmp_path / "1", recipe(microbatch=1))
    assert_same(one, train(tmp_path / "4", recipe(microbatch=4)), 1e-5)
    assert one["error"] is None


def test_a_step_follows_the_mean_of_the_samples_losses(tmp_path: Path) -> None:
    """Two steps against plain torch: mean of all samples, clipped, Adam, and the average of the weights."""
    chosen = recipe(steps=2, microbatch=2, optimizer={"name": "adam", "max_gradient_norm": 0.5})
    outcome = train(tmp_path / "run", chosen)
    task = toy_task.make(chosen.config, "none", tmp_path)
    module = task.build()
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in weights.items()}
    adam = torch.optim.Adam(weights.values(), lr=1e-2)
    batches = batches_of(task, 4)
    for step in range(2):
        losses_of(task, module, next(batches))["loss"].mean().backward()
        assert nn.utils.clip_grad_norm_(weights.values(), 0.5) > 0.5
        adam.step()
        adam.zero_grad()
        for name, value in average.items():
            value.lerp_(weights[name].detach(), 1 - (1 + step) / (10 + step))
    for name, value in weights.items():
        torch.testing.assert_close(outcome["module"][name], value.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outcome["ema"][name], average[name], rtol=1e-5, atol=1e-6)


class Killed(Exception):
    """The process is gone: nothing that the loop does afterwards may matter."""


class Spy(toy_task.ToyTask):
    """Does something before every loss; it gets the slots."""

    def __init__(self, config: toy_task.Config, deed: Callable[[list[int]], Any]) -> None:
        super().__init__(config, "none", Path())
        self.deed = deed

    def loss(self, module: Any, batch: Any, **about: Any) -> Any:
        self.deed(batch["slot"].tolist())
        return super().loss(module, batch, **about)


def kill_at(slot: int) -> Callable[[list[int]], None]:
    def kill(slots: list[int]) -> None:
        if slot in slots:
            raise Killed

    return kill


@pytest.mark.parametrize(("asynchronous", "decay"), [(False, 0.9), (True, 0.9), (True, 0.0)])
def test_a_killed_training_goes_on_with_the_same_bits(tmp_path: Path, asynchronous: bool, decay: float) -> None:
    chosen = recipe(
        {"dropout": 0.3},
        steps=11,
        checkpoint={"every": 3, "asynchronous": asynchronous},
        ema={"decay": decay},
        log={"every": 1},
        schedule={"name": "cosine", "warmup_steps": 3},
    )
    whole = train(tmp_path / "whole", chosen)
    with pytest.raises(Killed):
        train(tmp_path / "run", chosen, task=Spy(chosen.config, kill_at(4 * 7 + 2)))
    before = lines(tmp_path / "run")
    assert [line["step"] for line in before] == [1, 2, 3, 4, 5, 6, 7]
    resumed = train(tmp_path / "run", chosen)
    assert_same(resumed, whole)
    exported = [load_file(tmp_path / name / "out/weights.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(exported[0][name], value) for name, value in exported[1].items())
    for line, other in zip(lines(tmp_path / "run"), lines(tmp_path / "whole"), strict=True):
        assert {k: v for k, v in line.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}


def test_dropout_is_drawn_anew_in_every_microbatch_and_not_from_the_global_state(tmp_path: Path) -> None:
    chosen = recipe({"dropout": 0.3})
    torch.manual_seed(1)
    one = train(tmp_path / "1", chosen)
    torch.manual_seed(2)
    assert_same(one, train(tmp_path / "2", chosen))
    drawn: list[float] = []
    train(tmp_path / "3", chosen, task=Spy(chosen.config, lambda _: drawn.append(float(torch.rand(())))))
    assert len(drawn) == 1 + 8 * 2
    assert len(set(drawn)) == 8 * 2  # the rehearsal's batch is the first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    chosen = recipe({"dropout": 0.3}, steps=9, checkpoint={"every": 100, "asynchronous": True})
    start(tmp_path / "run", chosen)
    before = signal.getsignal(number)

    def signal_at_step_5(slots: list[int]) -> None:
        if 4 * 4 in slots:
            os.kill(os.getpid(), number)

    trainer = trainer_of(tmp_path / "run", chosen, task=Spy(chosen.config, signal_at_step_5))
    # The next step is launched before the ranks learn of the signal. The launcher may not wait for yet another one.
    with pytest.raises(Interrupted, match="interrupted at step 6"):
        trainer.fit()
    assert [entry.name for entry in sorted((tmp_path / "run/checkpoints").glob("step-*"))] == ["step-00000006"]
    assert signal.getsignal(number) is before
    trainer.close()
    assert_same(train(tmp_path / "run", chosen), train(tmp_path / "whole", chosen))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preempting(LocalPort):
    """Is preempted at the second question; keeps what it is told."""

    told: list[Any] = dataclasses.field(default_factory=list)
    asked: list[int] = dataclasses.field(default_factory=list)

    def report(self, metrics: Any) -> None:
        self.told.append(dict(metrics))

    def preempting(self) -> bool:
        self.asked.append(1)
        return len(self.asked) == 2


@pytest.mark.parametrize(("seconds", "saved", "questions"), [(0.0, [4, 9], 5), (3600.0, [9], 1)])
def test_a_preemption_leaves_a_checkpoint_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saved: list[int], questions: int
) -> None:
    """Asked for at every other step when steps take long, and now and then when they are many. The answer to the second
    question, in step 3, is read when step 4 has been launched."""
    monkeypatch.setattr(loop, "ASK_EVERY_S", seconds)
    chosen = recipe(steps=9, checkpoint={"every": 1000, "keep": 9})
    port = Preempting()
    outcome = train(tmp_path / "run", chosen, port=port)
    assert outcome["step"] == 9
    assert len(port.asked) == questions
    steps = [entry.name for entry in sorted((tmp_path / "run/checkpoints").glob("step-*"))]
    assert steps == [f"step-{step:08d}" for step in saved]
    assert len(port.told) == len(saved) and "loss" in port.told[-1]


def test_reading_ends_with_the_trainer(tmp_path: Path) -> None:
    chosen = recipe()
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen, task=Spy(chosen.config, kill_at(9)))
    ended: list[bool] = []
    batches = trainer.reading.loader

    class Reader(ClipLoader):
        def __iter__(self) -> Any:
            try:
                yield from super().__iter__()
            finally:
                ended.append(True)

    batches.__class__ = Reader
    with pytest.raises(Killed):
        trainer.fit()
    assert not ended
    trainer.close()
    assert ended


def test_frozen_parameters_stay_and_are_nowhere(tmp_path: Path) -> None:
    chosen = recipe(optimizer={"weight_decay": 0.1})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    trainer.fit()
    frozen = {"features.weight", "features.bias"}
    built = toy_task.make(chosen.config, "none", tmp_path).build().state_dict()
    now = trainer.module.state_dict()
    assert all(torch.equal(now[name], built[name]) for name in frozen)
    assert not any(torch.equal(now[name], built[name]) for name in trainer.learner.parameters)
    state = trainer._state()
    named = {name for part in state.values() for name in part}
    assert not any("features" in name for name in named)
    assert {"head.weight", "blocks.0.linear.weight", "scale"} <= named
    learner = trainer.learner
    assert sum(len(group["params"]) for group in learner.optimizer.param_groups) == len(learner.parameters)
    (tmp_path / "out").mkdir()
    trainer.export(tmp_path / "out")
    exported = load_file(tmp_path / "out/weights.safetensors")
    assert exported.keys() == built.keys()
    assert all(torch.equal(exported[name], built[name]) for name in frozen)
    trainer.close()


def test_the_export_needs_no_first_weights_any_more(tmp_path: Path) -> None:
    chosen = recipe()
    task = toy_task.make(chosen.config, "none", tmp_path)
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen, task=task)
    task.build = None  # type: ignore[method-assign,assignment]  # as good as a deleted folder
    trainer.fit()
    (tmp_path / "out").mkdir()
    trainer.export(tmp_path / "out")
    trainer.close()
    assert load_file(tmp_path / "out/weights.safetensors").keys() == trainer.module.state_dict().keys()


def test_trained_weights_must_be_float32(tmp_path: Path) -> None:
    chosen = recipe()
    task = toy_task.make(chosen.config, "none", tmp_path)
    half = task.build().bfloat16()
    task.build = lambda: half  # type: ignore[method-assign]
    start(tmp_path / "run", chosen)
    with pytest.raises(AssertionError, match=r"float32.*head\.weight"):
        trainer_of(tmp_path / "run", chosen, task=task)


def test_what_the_loss_does_not_depend_on_must_be_frozen(tmp_path: Path) -> None:
    chosen = recipe()
    task = toy_task.make(chosen.config, "none", tmp_path)
    module = task.build()
    module.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    task.build = lambda: module  # type: ignore[method-assign]
    assert "the loss does not depend on idle" in train(tmp_path / "run", chosen, task=task)["error"]


def test_ranks_that_cannot_share_the_batch_are_refused(tmp_path: Path) -> None:
    start(tmp_path / "run", recipe())
    with pytest.raises(ValueError, match="take 1 or 2 ranks"):
        trainer_of(tmp_path / "run", recipe(), port=LocalPort(rank=0, world=4))


def test_a_finished_training_is_left_as_it_is(tmp_path: Path) -> None:
    first = train(tmp_path / "run", recipe())
    written = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert_same(train(tmp_path / "run", recipe()), first)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == written
    longer = train(tmp_path / "run", recipe(steps=10))
    assert_same(longer, train(tmp_path / "longer", recipe(steps=10)))


def test_the_loss_falls(tmp_path: Path) -> None:
    train(
        tmp_path / "run",
        recipe({"noise": 0.0}, steps=150, global_batch=20, microbatch=20, log={"every": 30}, checkpoint={"every": 999}),
    )
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.3 * losses[0]
    assert lines(tmp_path / "run")[-1]["epoch"] == 150


def test_validation_gets_the_averaged_weights_of_its_step(tmp_path: Path) -> None:
    chosen = recipe({"dropout": 0.3}, validation={"every": 3})
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen)
    found: dict[int, Any] = {}

    def submit(step: int, export: Any) -> None:
        folder = tmp_path / f"{step}"
        folder.mkdir()
        export(folder)
        found[step] = load_file(folder / "weights.safetensors")

    trainer.validations.submit = submit  # type: ignore[method-assign]
    trainer.fit()
    assert list(found) == [3, 6, 8]
    assert all(torch.equal(found[8][name], value) for name, value in trainer.ema.average.items())
    assert not torch.equal(found[3]["head.weight"], found[6]["head.weight"])
    trainer.close()


def test_a_run_without_averages_goes_on_from_an_older_checkpoint(tmp_path: Path) -> None:
    """Which held the weights a second time, under the names of averages."""
    chosen = recipe(ema={"decay": 0.0}, checkpoint={"every": 4})
    whole = train(tmp_path / "whole", chosen)
    start(tmp_path / "run", chosen)
    trainer = trainer_of(tmp_path / "run", chosen, task=Spy(chosen.config, kill_at(4 * 4)))
    with pytest.raises(Killed):
        trainer.fit()
    state = trainer._state()
    assert trainer.step == 4 and state["ema"] == {}
    trainer.close()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    older = trainer_of(tmp_path / "run", chosen)
    older.checkpoints.save(4, state | {"ema": dict(trainer.ema.average)}, block=True)
    older.close()
    assert_same(train(tmp_path / "run", chosen), whole)
    # A run with averages does not take one that has none.
    with pytest.raises(ValueError, match=r"is of another model: it lacks ema\."):
        trainer_of(tmp_path / "whole", recipe(ema={"decay": 0.9}, checkpoint={"every": 4}))
