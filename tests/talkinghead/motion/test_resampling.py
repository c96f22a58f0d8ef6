"""Motion at another frame rate: straight lines stay straight, in time, and the ends stand still."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.motion.resampling import resample_frames

RATES = st.sampled_from([12.5, 24.0, 25.0, 29.97, 30.0, 50.0])


@given(frames=st.integers(1, 60), fps=RATES, to_fps=RATES)
def test_straight_motion_stays_straight_in_time(frames: int, fps: float, to_fps: float) -> None:
    """A value that is the time of its frame's middle is that again, as far as the source reaches."""
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
