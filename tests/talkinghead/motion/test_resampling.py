"""Motion at another frame rate: straight lines stay straight, in time, and the ends are constant. Pose templates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.motion.resampling import resample_frames, tile
from talkinghead.motion.smoothing import TEMPLATE_WINDOW, moving_average

Golden = Callable[[str], dict[str, np.ndarray]]

RATES = st.sampled_from([12.5, 24.0, 25.0, 29.97, 30.0, 50.0])


@given(frames=st.integers(1, 60), fps=RATES, to_fps=RATES)
def test_straight_motion_stays_straight_in_time(frames: int, fps: float, to_fps: float) -> None:
    """Values that are the times of their frames' middles remain so, within the span of the source."""
    times = (np.arange(frames) + 0.5) / fps
    count = int(np.ceil(frames * to_fps / fps))
    moved = resample_frames(np.stack([times, -3 * times], axis=1)[:, :, None], fps, to_fps, count)
    wanted = np.clip((np.arange(count) + 0.5) / to_fps, times[0], times[-1])
    assert moved.shape == (count, 2, 1)
    np.testing.assert_allclose(moved[:, 0, 0], wanted, atol=1e-12)
    np.testing.assert_allclose(moved[:, 1, 0], -3 * wanted, atol=1e-12)


def test_the_same_rate_gives_the_same_numbers() -> None:
    values = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    assert np.array_equal(resample_frames(values, 30, 30, 9), values)
    longer = resample_frames(values, 30, 30, 11)
    assert np.array_equal(longer[:9], values) and np.array_equal(longer[9:], values[[8, 8]])
    assert resample_frames(values, 25, 30, 11).dtype == np.float32


def test_refused() -> None:
    for values, fps, to_fps in [(np.zeros((0, 6)), 25, 30), (np.zeros((1, 6)), 0, 30), (np.zeros((1, 6)), 25, -1)]:
        with pytest.raises(ValueError, match="cannot be resampled"):
            resample_frames(values, fps, to_fps, 3)


def test_template_goldens(golden: Golden) -> None:
    data = golden("smoothing")
    smoothed = moving_average(data["template_resampled"], TEMPLATE_WINDOW)
    np.testing.assert_allclose(smoothed, data["template"], atol=1e-4)
    np.testing.assert_allclose(tile(data["template"], 100), data["template_tiled_100"], atol=1e-4)


def test_an_empty_template_is_named() -> None:
    with pytest.raises(ValueError, match="empty"):
        tile(np.zeros((0, 6)), 5)


@given(st.integers(1, 9), st.integers(0, 40))
def test_tiling_goes_to_and_fro(rows: int, frames: int) -> None:
    template = np.arange(rows, dtype=float)[:, None] * np.ones(6)
    found = tile(template, frames)
    assert found.shape == (frames, 6)
    np.testing.assert_array_equal(found[:rows], template[:frames])
    if rows > 1:
        assert (np.abs(np.diff(found[:, 0])) == 1).all()
