"""Functions of time on parts give the numbers of the whole, bit for bit, and look no further ahead than they say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.motion.parts import averaged_parts, equal_parts, resampled_parts
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.smoothing import moving_average, narrow_average

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def rows(lengths: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    whole = np.random.default_rng(sum(lengths)).normal(size=(sum(lengths), 2, 3)).astype(np.float32)
    return whole, np.split(whole, np.cumsum(lengths)[:-1])


@given(LENGTHS, st.sampled_from([1, 3, 5, 11]))
def test_an_average_of_parts_is_that_of_the_whole(lengths: list[int], window: int) -> None:
    whole, parts = rows(lengths)
    for average in (moving_average, narrow_average):
        found = np.concatenate(list(averaged_parts(iter(parts), window, average)))
        assert np.array_equal(found, average(whole, window))


@given(
    LENGTHS, st.sampled_from([(25.0, 25.0), (25.0, 30.0), (30.0, 25.0), (24.0, 60.0), (60.0, 12.0)]), st.integers(1, 90)
)
def test_resampled_parts_are_the_resampled_whole(lengths: list[int], rates: tuple[float, float], count: int) -> None:
    whole, parts = rows(lengths)
    found = list(resampled_parts(iter(parts), len(whole), *rates, count))
    assert np.array_equal(np.concatenate(found), resample_frames(whole, *rates, count))


@given(LENGTHS, st.integers(1, 7))
def test_equal_parts_are_the_same_rows(lengths: list[int], size: int) -> None:
    whole, parts = rows(lengths)
    found = list(equal_parts(iter(parts), size))
    assert np.array_equal(np.concatenate(found), whole)
    assert {len(part) for part in found[:-1]} <= {size} and 1 <= len(found[-1]) <= size


@pytest.mark.parametrize(("change", "ahead"), [("average", 2), ("resample", 1)])
def test_only_a_few_frames_are_looked_ahead(change: str, ahead: int) -> None:
    taken = 0

    def single() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.zeros((1, 3))

    parts = averaged_parts(single(), 5) if change == "average" else resampled_parts(single(), 100, 25, 30, 120)
    shown = 0
    for part in parts:
        shown += len(part)
        assert taken <= shown * (1 if change == "average" else 25 / 30) + ahead + 1
    assert taken == 100
