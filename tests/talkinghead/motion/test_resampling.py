"""Motion at another frame rate: straight lines stay straight, in time, and the ends are constant. Pose templates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.motion.resampling import played, resample_frames, resampled, tile
from talkinghead.motion.smoothing import TEMPLATE_WINDOW, moving_average
from tests.support.motions import a_motion

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


@given(frames=st.integers(1, 30), fps=RATES, count=st.integers(1, 40))
def test_a_motion_at_its_own_rate_is_itself(frames: int, fps: float, count: int) -> None:
    """Cut, or standing still at its end; bit for bit where it is no longer than before."""
    motion = a_motion(frames, fps=fps, eyes=True)
    found = resampled(motion, fps, count)
    last = np.minimum(np.arange(count), frames - 1)
    assert len(found) == count and found.valid.all() and found.eyes is not None and motion.eyes is not None
    np.testing.assert_array_equal(found.meshes(), motion.meshes()[last])
    np.testing.assert_array_equal(found.eyes, motion.eyes[last])
    np.testing.assert_allclose(found.pose_matrix, motion.pose_matrix[last], atol=1e-9)
    if count <= frames:
        np.testing.assert_array_equal(found.pose_matrix, motion.pose_matrix[:count])
    assert len(resampled(motion, fps)) == frames


@given(fps=RATES, to_fps=RATES, gap=st.integers(0, 19))
def test_a_motion_at_another_rate(fps: float, to_fps: float, gap: int) -> None:
    """Numbers of poses and meshes alike; frames next to a gap have no face either."""
    motion = a_motion(20, fps=fps, gaps=(gap,))
    found = resampled(motion, to_fps)
    assert found.fps == to_fps and len(found) == max(1, round(20 * to_fps / fps))
    wanted = resample_frames(motion.meshes(), fps, to_fps, len(found))
    np.testing.assert_array_equal(found.meshes(), wanted)
    np.testing.assert_array_equal(found.valid, np.isfinite(wanted[:, 0, 0]))
    there = found.valid
    np.testing.assert_allclose(
        found.pose[there], resample_frames(motion.pose, fps, to_fps, len(found))[there], atol=1e-9
    )


@given(frames=st.integers(1, 9), to_fps=RATES, count=st.integers(1, 60))
def test_a_short_motion_is_played_to_and_fro(frames: int, to_fps: float, count: int) -> None:
    """As a template is: tiled at its own rate first, then brought to the other; a long one is only cut."""
    motion = a_motion(frames)
    found = played(motion, to_fps, count)
    wanted = resample_frames(tile(motion.meshes(), 200), 25, to_fps, count)
    assert len(found) == count and found.fps == to_fps
    inner = (np.arange(count) + 0.5) * 25 / to_fps + 0.5 < max(frames, np.ceil(count * 25 / to_fps))
    np.testing.assert_array_equal(found.meshes()[inner], wanted[inner])
    long = a_motion(200)
    np.testing.assert_array_equal(played(long, to_fps, count).meshes(), resampled(long, to_fps, count).meshes())


def test_motion_refused() -> None:
    for call in (resampled, played):
        with pytest.raises(ValueError, match="cannot be resampled"):
            call(a_motion(3), 0.0, 2)
        with pytest.raises(ValueError):
            call(a_motion(3), 25.0, 0)
