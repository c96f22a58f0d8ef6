"""Times of the steps."""

from __future__ import annotations

import pytest
import torch

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
