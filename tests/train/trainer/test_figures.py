"""Sums over samples, and the means of a line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.support.training import Ranks, lines, recipe, train
from train.trainer.figures import Interval, split, sums_of
from train.trainer.throughput import Throughput


def test_partial_figures_are_of_some_samples_only() -> None:
    losses = [{"loss": torch.tensor([1.0, 2.0])}, {"loss": torch.tensor([3.0])}]
    nan = float("nan")
    figures = [
        {"even": (torch.tensor([nan, 2.0]), torch.tensor([False, True]))},
        {"even": (torch.tensor([nan]), torch.tensor([False]))},
    ]
    sums = sums_of(losses, figures, [{"loss": torch.tensor([5.0])}])
    whole, partial = split({name: float(value) for name, value in sums.items()})
    assert whole == {"loss": 6.0, "critic/loss": 5.0}
    assert partial == {"even": (2.0, 1.0)}


def test_a_line_has_means_over_the_samples_of_its_steps() -> None:
    interval = Interval(Throughput(torch.device("cpu")))
    for loss, count in ((2.0, 0.0), (4.0, 3.0)):
        interval.read(4)
        interval.add({"loss": 4 * loss}, {"part": (10 * count, count), "none": (0.0, 0.0)}, {"gradient_norm": loss}, 4)
    interval.read(4)  # skipped
    interval.note({"network_gradient_norm/head": 7.0})
    with interval.clock.step():
        pass
    line = interval.line(epoch=0.5, learning_rate=1e-3, skipped=1)
    assert line["loss"] == 3.0 and line["gradient_norm"] == 3.0 and line["part"] == 10.0
    assert math.isnan(line["none"]) and line["network_gradient_norm/head"] == 7.0
    assert (line["epoch"], line["learning_rate"], line["skipped"]) == (0.5, 1e-3, 1)
    assert interval.newest is line
    # The next one begins empty.
    assert "loss" not in interval.line(epoch=0.5, learning_rate=1e-3, skipped=1)


def test_two_ranks_have_the_partial_means_of_one(ranks: Ranks, tmp_path: Path) -> None:
    train(tmp_path / "one", recipe())
    ranks.run(train, tmp_path / "two", recipe())
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one["absolute/above_0"] != one["absolute"]
        assert two["absolute/above_0"] == pytest.approx(one["absolute/above_0"], rel=1e-4)
