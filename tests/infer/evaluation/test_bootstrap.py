"""Bootstrap intervals: they hold the mean, narrow with more clips, and are the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.evaluation.bootstrap import Interval, mean_interval

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


def of(values: list[float], groups: list[str] | None = None, weights: list[int] | None = None, **more: int) -> Interval:
    keys = [f"clip{number}" for number in range(len(values))]
    found = mean_interval(
        dict(zip(keys, values, strict=True)),
        dict(zip(keys, weights or [1] * len(values), strict=True)),
        dict(zip(keys, groups or keys, strict=True)),
        **more,
    )
    assert found is not None
    return found


@given(VALUES)
def test_an_interval_lies_within_the_values_and_moves_with_them(values: list[float]) -> None:
    found, moved = of(values, resamples=200), of([value + 7 for value in values], resamples=200)
    assert found.low is not None and found.high is not None and moved.low is not None
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert moved.low == pytest.approx(found.low + 7, abs=1e-9)


def test_it_holds_the_mean_and_narrows_by_the_root_of_the_number_of_clips() -> None:
    draw = np.random.default_rng(0).normal(size=1600)
    widths = []
    for count in (25, 100, 400, 1600):
        found = of(draw[:count].tolist())
        assert found.low is not None and found.high is not None and found.low < found.mean < found.high
        widths.append(found.high - found.low)
        # As wide as theory says: 2 · 1.96 standard errors.
        assert widths[-1] == pytest.approx(2 * 1.96 * draw[:count].std() / np.sqrt(count), rel=0.12)
    assert widths == sorted(widths, reverse=True)


def test_95_of_100_intervals_hold_the_truth() -> None:
    draws = np.random.default_rng(1).normal(loc=3, size=(200, 60))
    hits = 0
    for row in draws:
        found = of(row.tolist(), resamples=500)
        assert found.low is not None and found.high is not None
        hits += found.low <= 3 <= found.high
    assert 180 <= hits <= 198


def test_the_same_each_time_and_another_for_another_seed() -> None:
    values = np.random.default_rng(2).normal(size=20).tolist()
    assert of(values) == of(values) and of(values) != of(values, seed=1)


def test_clips_of_one_person_are_drawn_together() -> None:
    """Ten equal clips of each of four persons tell no more than four clips."""
    people = [0.0, 1.0, 2.0, 5.0]
    alone = of(people, groups=["a", "b", "c", "d"])
    many = of([value for value in people for _ in range(10)], groups=[name for name in "abcd" for _ in range(10)])
    assert (many.mean, many.low, many.high, many.groups) == (alone.mean, alone.low, alone.high, 4)
    assert many.clips == 40 and alone.clips == 4
    loose = of([value for value in people for _ in range(10)])
    assert loose.low is not None and alone.low is not None and loose.low > alone.low


def test_weights_are_frames() -> None:
    assert of([0.0, 1.0], weights=[1, 3]).mean == 0.75


def test_a_single_person_has_no_interval_and_no_clip_no_mean() -> None:
    found = of([1.0, 2.0], groups=["a", "a"])
    assert found.low is None and found.high is None and found.mean == 1.5 and found.holds_zero
    assert mean_interval({}, {}, {}) is None
