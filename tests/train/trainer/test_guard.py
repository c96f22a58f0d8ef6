"""Steps that are skipped, and those that are warned of."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.toy_task import ToyTask
from tests.support.training import Ranks, assert_same, lines, recipe, start, train, trainer_of
from train.config import GuardConfig
from train.trainer.guard import WATCHED, Excess, NotFinite, RunningMedian, SkipGuard, Usual, faults_of
from train.trainer.learner import COMMON

JUMP = 4 * 20 + 1
"""Slot, in step 21, whose loss is a thousand times as large."""


def long(toy: dict[str, Any] | None = None, **train: Any) -> Any:
    """Enough steps for a median."""
    settings = {"steps": 24, "log": {"every": 4}, "checkpoint": {"every": 6, "keep": 9}} | train
    return recipe({"jump": (JUMP,), **(toy or {})}, **settings)


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines(path) if line.get("event") == kind]


# --- not finite -------------------------------------------------------------------------------------------------------


def test_the_run_is_given_up_after_so_many_in_a_row_also_across_a_resume(tmp_path: Path) -> None:
    chosen = recipe({"bad_loss": (1, *range(8, 40))}, guard={"abort_after": 4}, checkpoint={"every": 1})
    outcome = train(tmp_path / "run", chosen)
    assert outcome["error"].startswith("NotFinite: 4 steps in a row, up to step 6,")
    assert outcome["skipped"] == 5
    again = train(tmp_path / "run", chosen)  # from step 5, the third in a row
    assert again["error"].startswith("NotFinite: 4 steps in a row, up to step 6,")
    assert again["skipped"] == 5


def test_guard_counts() -> None:
    guard = SkipGuard(GuardConfig(abort_after=2))
    guard.skipped(1, "loss", ["a"])
    guard.passed()
    guard.skipped(3, "loss", ["b"])
    with pytest.raises(NotFinite, match=r"2 steps in a row, up to step 4, .* the last at c, d"):
        guard.skipped(4, "gradient", ["c", "d"])
    assert (guard.total, guard.in_a_row) == (3, 2)


# --- above the median -------------------------------------------------------------------------------------------------


def test_a_step_that_stands_out_is_warned_of_with_its_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcome = train(tmp_path / "run", long())
    (event,) = events(tmp_path / "run", "alarm")
    task = ToyTask(long().config, "none", tmp_path)
    keys = [task.dataset(0)[slot]["key"] for slot in range(80, 84)]
    assert event["step"] == 21 and sorted(event["keys"]) == sorted(keys) and event["keys"][0] == keys[1]
    assert event["what"].startswith("loss ") and " x the running median and gradient_norm " in event["what"]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == f"step 21: {event['what']}, in {', '.join(event['keys'])}"
    # A warning changes nothing.
    assert outcome["skipped"] == 0
    assert_same(outcome, train(tmp_path / "silent", long(guard={"warn_above": None})))
    assert not events(tmp_path / "silent", "alarm")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_step_may_be_skipped_and_a_resumed_run_skips_the_same(tmp_path: Path, asynchronous: bool) -> None:
    chosen = long(guard={"skip_above": 20.0}, checkpoint={"every": 6, "keep": 9, "asynchronous": asynchronous})
    whole = train(tmp_path / "whole", chosen)
    (event,) = events(tmp_path / "whole", "skipped")
    assert event["step"] == 21 and event["what"].startswith("loss ") and whole["skipped"] == 1
    assert event["keys"][0] == ToyTask(chosen.config, "none", tmp_path).dataset(0)[JUMP]["key"]
    # From step 18: without the values of the steps before there would be no median yet.
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000024")
    assert_same(train(tmp_path / "run", chosen), whole)
    assert events(tmp_path / "run", "skipped") == [event]


def test_ranks_skip_together(ranks: Ranks, tmp_path: Path) -> None:
    chosen = long(guard={"skip_above": 20.0})
    alone = train(tmp_path / "one", chosen)
    first, second = ranks.run(train, tmp_path / "two", chosen)
    assert_same(first, second)
    assert alone["skipped"] == first["skipped"] == second["skipped"] == 1
    one, two = (events(tmp_path / name, "skipped")[0] for name in ("one", "two"))
    assert (
        one["step"] == two["step"] and one["keys"][0] == two["keys"][0] and sorted(one["keys"]) == sorted(two["keys"])
    )


def test_a_run_that_is_always_above_is_given_up(tmp_path: Path) -> None:
    chosen = long({"jump": tuple(range(80, 200))}, steps=40, guard={"skip_above": 20.0, "abort_after": 3})
    outcome = train(tmp_path / "run", chosen)
    assert outcome["error"].startswith("NotFinite: 3 steps in a row, up to step 23, were skipped (loss ")
    assert "x the running median" in outcome["error"]


def test_a_checkpoint_of_older_code_has_no_values(tmp_path: Path) -> None:
    chosen = long(steps=12)
    whole = train(tmp_path / "whole", chosen)
    start(tmp_path / "run", chosen)
    older = trainer_of(tmp_path / "run", chosen)
    state = older._state()
    donor = trainer_of(tmp_path / "whole", chosen)
    donor.checkpoints.load(6, state)
    del state["medians"]
    older.checkpoints.save(6, state, block=True)
    older.close()
    donor.close()
    resumed = trainer_of(tmp_path / "run", chosen)
    assert resumed.step == 6 and resumed.medians.state()["values"].isnan().all()
    resumed.close()
    assert_same(train(tmp_path / "run", chosen), whole)


def test_the_window_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    train(tmp_path / "run", long(steps=12))
    assert train(tmp_path / "run", long(guard={"window": 1000}))["error"] is None
    assert events(tmp_path / "run", "alarm")


def filled(values: list[float], **config: Any) -> RunningMedian:
    medians = RunningMedian(GuardConfig(**config))
    for value in values:
        medians.add(torch.tensor([value, 1.0], dtype=torch.float64), torch.tensor(True))
    return medians


def excesses(medians: RunningMedian, loss: float, norm: float, limit: float | None) -> list[Excess]:
    """What stands out, after a check that the device would skip such a step for it."""

    def named(values: Any) -> dict[str, float]:
        return dict(zip(WATCHED, values, strict=True))

    median, newest = medians.medians(), medians.newest()
    usual = Usual(values=named([loss, norm]), medians=named(median.tolist()), newest=named(newest.tolist()))
    found = usual.excesses(limit)
    skipping = RunningMedian(dataclasses.replace(medians.config, skip_above=limit))
    values = torch.tensor([loss, norm], dtype=torch.float64)
    assert bool(skipping.passes(values, median, list(values))) is not bool(found)
    return found


def test_multiples_of_the_median() -> None:
    medians = filled([1.0, 3.0, 2.0] * 5)
    (found,) = excesses(medians, 21.0, 9.0, 10.0)
    assert (found.name, found.value, found.times, found.new) == ("loss", 21.0, 10.5, True)
    assert found.text == "loss 21 is 10.5 x the running median"
    assert not excesses(medians, 20.0, 10.0, 10.0) and not excesses(medians, 1e9, 1.0, None)
    assert [e.name for e in excesses(medians, 21.0, 11.0, 10.0)] == ["loss", COMMON]
    # Of many in a row only the first is new.
    medians.add(torch.tensor([50.0, 1.0]).double(), torch.tensor(True))
    (found,) = excesses(medians, 60.0, 1.0, 10.0)
    assert not found.new


@given(st.lists(st.floats(-5, 5), max_size=40), st.integers(10, 30))
def test_the_median_is_that_of_the_values_in_the_window(values: list[float], window: int) -> None:
    found = filled(values, window=window).medians()[0].item()
    newest = sorted(values[-window:])
    assert math.isnan(found) if len(newest) < 10 else found == newest[(len(newest) - 1) // 2]


def test_no_median_before_ten_steps_nor_of_what_is_not_above_0() -> None:
    assert not excesses(filled([1.0] * 9), 1e9, 1.0, 10.0)
    assert excesses(filled([1.0] * 10), 1e9, 1.0, 10.0)
    assert not excesses(filled([-1.0] * 20), 1e9, 1.0, 10.0)


def test_only_the_window_counts() -> None:
    medians = filled([1.0] * 100 + [100.0] * 10, window=10)
    assert not excesses(medians, 900.0, 1.0, 10.0)
    assert excesses(filled([1.0] * 100 + [100.0] * 10, window=30), 900.0, 1.0, 10.0)


def test_state_is_filled_in_place_and_a_skipped_step_leaves_it() -> None:
    medians, other = filled([1.0] * 12), RunningMedian(GuardConfig())
    other.state()["values"].copy_(medians.state()["values"])
    other.add(torch.tensor([torch.nan, 7.0]).double(), torch.tensor(False))
    assert torch.equal(other.medians(), medians.medians())
    assert excesses(other, 11.0, 1.0, 10.0)
    assert medians.state()["values"].dtype == torch.float64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_step_with_a_number_that_is_not_finite_passes(bad: float) -> None:
    medians = RunningMedian(GuardConfig())
    values = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for at in range(3):
        decisive = [torch.tensor(bad if number == at else 1.0) for number in range(3)]
        assert not medians.passes(values, medians.medians(), decisive)
    assert medians.passes(values, medians.medians(), [torch.tensor(1.0)])


@pytest.mark.parametrize("wrong", [{"warn_above": 1.0}, {"skip_above": 0.5}, {"window": 9}, {"window": 1001}])
def test_limits_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"guard\.{next(iter(wrong))}"):
        dataclasses.replace(GuardConfig(), **wrong)


def test_what_is_not_finite() -> None:
    nan = float("nan")
    assert faults_of({"loss": nan}, {COMMON: nan}, {}) == ["loss"]
    assert faults_of({"loss": 1.0}, {COMMON: 1.0, "other": nan}, {}) == ["gradient"]
    assert faults_of({"loss": 1.0, "critic/loss": nan}, {COMMON: 1.0}, {COMMON: nan}) == ["critic/loss"]
    assert not faults_of({"loss": 1.0, "critic/loss": 0.0}, {COMMON: 1.0}, {})
