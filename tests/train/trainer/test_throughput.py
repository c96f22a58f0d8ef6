"""Times of the steps."""

from __future__ import annotations

import time

import pytest
import torch

from train.trainer.throughput import Throughput


def test_shares_of_an_interval() -> None:
    clock = Throughput(torch.device("cpu"))
    for _ in range(2):
        with clock.step():
            with clock.waiting():
                time.sleep(0.1)
            time.sleep(0.1)
    time.sleep(0.2)
    figures = clock.interval(global_batch=6)
    assert figures["step_s"] == pytest.approx(0.2, rel=0.4)
    assert figures["data_wait"] == pytest.approx(0.5, abs=0.15)
    assert figures["samples_per_s"] == pytest.approx(12 / 0.6, rel=0.4)  # what is not a step counts, too
    assert 0.05 < figures["memory_gb"] < 50


def test_an_interval_begins_anew() -> None:
    clock = Throughput(torch.device("cpu"))
    with clock.step(), clock.waiting():
        time.sleep(0.05)
    clock.interval(1)
    with clock.step():
        pass
    assert clock.interval(1)["data_wait"] == 0.0
