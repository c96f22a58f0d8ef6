"""Smoothing, and drawing of a smoothed motion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.camera import project
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import pose_from_matrix
from talkinghead.motion.motion import Coefficients
from talkinghead.motion.smoothing import moving_average, narrow_average, smoothed
from tests.support.motions import a_motion

Golden = Callable[[str], dict[str, np.ndarray]]


def test_smoothing_goldens(golden: Golden) -> None:
    data = golden("smoothing")
    for window in (1, 3, 5, 7):
        np.testing.assert_allclose(
            moving_average(data["smooth.in"], window), data[f"smooth.w{window}"], rtol=0, atol=1e-12
        )
    for rows in (1, 2, 4):
        np.testing.assert_allclose(
            moving_average(data["smooth.in"][:rows], 7), data[f"smooth.first{rows}.w7"], rtol=0, atol=1e-12
        )


@given(st.integers(0, 12), st.integers(0, 6).map(lambda half: 2 * half + 1), st.integers(0, 999))
def test_smoothing_is_the_mean_of_the_frames_there(frames: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(frames, 2, 3))
    values[rng.random(frames) < 0.3, 0, 1] = np.nan
    found = moving_average(values, window)
    present = np.all(np.isfinite(values), axis=(1, 2))
    for frame in range(frames):
        near = [k for k in range(frames) if abs(k - frame) <= window // 2 and present[k]]
        if present[frame]:
            np.testing.assert_allclose(found[frame], values[near].mean(axis=0), atol=1e-12)
        else:
            assert np.isnan(found[frame]).all()


@pytest.mark.parametrize("window", [0, 2, -3])
def test_smoothing_refuses_a_window_without_a_middle(window: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        moving_average(np.zeros((4, 6)), window)


def test_smoothed_motion_goldens(golden: Golden) -> None:
    data = golden("smoothing")
    np.testing.assert_allclose(moving_average(data["retarget.pose"], 3), data["retarget.pose_smooth"], atol=1e-4)
    np.testing.assert_allclose(pose_from_matrix(data["retarget.matrices"]), data["retarget.pose_smooth"], atol=1e-4)
    width, height = map(int, data["size_wh"])
    points = project(data["retarget.vertices"], data["retarget.matrices"], width, height, compat=True)
    np.testing.assert_allclose(points, data["retarget.points"], atol=1e-3)
    for frame in range(3):
        image = draw_guidance(data["retarget.points"][frame] / (width, height), width, height)
        resized = cv2.resize(image, (512, 512), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resized, data[f"retarget.image{frame}"])


@given(window=st.sampled_from([1, 3, 9]), shape=st.sampled_from([(7,), (7, 2), (5, 468, 3), (1, 110)]))
def test_a_narrow_average_is_the_average_in_its_own_type(window: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[0] = np.nan
    found = narrow_average(values, window)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, moving_average(values, window).astype(np.float32))


@given(face=st.sampled_from([1, 3, 7]), pose=st.sampled_from([1, 3, 7]), frames=st.integers(1, 12))
def test_a_motion_is_smoothed_by_its_numbers(face: int, pose: int, frames: int) -> None:
    """Meshes and eyes by one window, head poses by the other; a window of 1 changes no bit; gaps stay."""
    motion = a_motion(frames, gaps=(0,) if frames > 1 else (), eyes=True)
    found = smoothed(motion, face=face, pose=pose)
    assert found.eyes is not None and motion.eyes is not None and np.array_equal(found.valid, motion.valid)
    np.testing.assert_array_equal(found.meshes(), moving_average(motion.meshes(), face).astype(np.float32))
    np.testing.assert_array_equal(found.eyes, moving_average(motion.eyes, face).astype(np.float32))
    if pose == 1:
        np.testing.assert_array_equal(found.pose_matrix, motion.pose_matrix)
    np.testing.assert_allclose(found.pose, moving_average(motion.pose, pose), atol=1e-9)


def test_coefficients_are_smoothed_like_meshes_and_keep_their_pose() -> None:
    rng = np.random.default_rng(0)
    values, pose = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    motion = replace(a_motion(9), coefficients=Coefficients(space="s", values=values, pose=pose))
    found = smoothed(motion, face=5)
    assert found.coefficients is not None and found.coefficients.pose is not None
    np.testing.assert_array_equal(found.coefficients.values, moving_average(values, 5).astype(np.float32))
    np.testing.assert_array_equal(found.coefficients.pose, pose)
    with pytest.raises(ValueError, match="s hold the head's pose"):
        smoothed(motion, pose=3)
    with pytest.raises(ValueError, match="window 2 must be odd"):
        smoothed(motion, face=2)
