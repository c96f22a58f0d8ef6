"""Smoothing, reenactment and pose templates."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.geometry.pose_template import pose_template, relative_pose, resample, tile
from talkinghead.geometry.projection import project
from talkinghead.geometry.retarget import neutral_frame, retarget, retarget_pose
from talkinghead.geometry.smoothing import moving_average

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


def test_retarget_goldens(golden: Golden) -> None:
    data = golden("smoothing")
    source = (data["src.lmks3d"], data["src.trans_mat"], data["src.blendshapes"])
    found = retarget(*source, reference_mesh=data["ref.lmks3d"], reference_pose_matrix=data["ref.trans_mat"])
    assert found.neutral_frame == data["retarget.neutral_index"]
    np.testing.assert_allclose(
        retarget_pose(data["src.trans_mat"], data["ref.trans_mat"]), data["retarget.pose"], atol=1e-4
    )
    np.testing.assert_allclose(found.pose, data["retarget.pose_smooth"], atol=1e-4)
    np.testing.assert_allclose(found.pose_matrix, data["retarget.matrices"], atol=1e-6)
    np.testing.assert_allclose(found.mesh, data["retarget.vertices"], atol=1e-5)
    width, height = map(int, data["size_wh"])
    points = project(found.mesh, found.pose_matrix, width, height, compat=True)
    np.testing.assert_allclose(points, data["retarget.points"], atol=1e-3)
    for frame in range(3):
        image = draw_guidance(data["retarget.points"][frame] / (width, height), width, height)
        resized = cv2.resize(image, (512, 512), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resized, data[f"retarget.image{frame}"])


def test_retargeting_a_face_onto_itself_changes_nothing(golden: Golden) -> None:
    data = golden("smoothing")
    neutral = int(data["retarget.neutral_index"])
    mesh, matrix = data["src.lmks3d"], data["src.trans_mat"]
    found = retarget(
        mesh,
        matrix,
        data["src.blendshapes"],
        reference_mesh=mesh[neutral],
        reference_pose_matrix=matrix[0],
        window=1,
    )
    np.testing.assert_allclose(found.mesh, mesh, atol=1e-6)
    np.testing.assert_allclose(found.pose, pose_from_matrix(matrix), atol=1e-9)


def test_retarget_passes_over_frames_without_a_face(golden: Golden) -> None:
    data = {name: value.copy() for name, value in golden("smoothing").items()}
    gone = [0, int(data["retarget.neutral_index"])]
    for name in ("src.lmks3d", "src.trans_mat", "src.blendshapes"):
        data[name][gone] = np.nan
    found = retarget(
        data["src.lmks3d"],
        data["src.trans_mat"],
        data["src.blendshapes"],
        reference_mesh=data["ref.lmks3d"],
        reference_pose_matrix=data["ref.trans_mat"],
    )
    present = np.all(np.isfinite(found.pose), axis=1)
    assert not present[gone].any() and present.sum() == len(present) - len(set(gone))
    assert (np.isfinite(found.mesh).all(axis=(1, 2)) == present).all()
    with pytest.raises(ValueError, match="face"):
        retarget_pose(np.full((3, 4, 4), np.nan), np.eye(4))


def test_neutral_frame_does_not_count_the_neutral_score() -> None:
    scores = np.full((3, 52), 0.1)
    scores[1, 1:] = 0.01
    scores[1, 0] = 100.0
    assert neutral_frame(scores) == neutral_frame(scores[:, 1:]) == 1
    scores[1] = np.nan
    assert neutral_frame(scores) == 0
    with pytest.raises(ValueError, match="no frame"):
        neutral_frame(np.full((2, 52), np.nan))
    with pytest.raises(ValueError, match="52"):
        neutral_frame(np.zeros((2, 50)))


def test_template_goldens(golden: Golden) -> None:
    data = golden("smoothing")
    fps = float(data["template_fps"])
    relative = relative_pose(data["src.trans_mat"])
    np.testing.assert_allclose(relative, data["template_relative"], atol=1e-4)
    np.testing.assert_allclose(resample(relative, fps=fps, to_fps=30), data["template_resampled"], atol=1e-4)
    template = pose_template(data["src.trans_mat"], fps=fps, template_fps=30)
    np.testing.assert_allclose(template, data["template"], atol=1e-4)
    np.testing.assert_allclose(tile(template, 100), data["template_tiled_100"], atol=1e-4)


@given(st.integers(1, 9), st.integers(0, 40))
def test_tiling_goes_to_and_fro(rows: int, frames: int) -> None:
    template = np.arange(rows, dtype=float)[:, None] * np.ones(6)
    found = tile(template, frames)
    assert found.shape == (frames, 6)
    np.testing.assert_array_equal(found[:rows], template[:frames])
    if rows > 1:
        assert (np.abs(np.diff(found[:, 0])) == 1).all()


def test_template_is_relative_to_its_first_frame() -> None:
    """Wherever the head was, a template begins at zero, and playing it from there gives the head's motion back."""
    poses = np.array([10, 20, -5, 1, 2, -40.0]) + np.random.default_rng(2).normal(0, 3, (20, 6))
    matrix = matrix_from_pose(poses)
    relative = relative_pose(matrix)
    np.testing.assert_allclose(relative[0], 0, atol=1e-9)
    np.testing.assert_allclose(matrix[0] @ matrix_from_pose(relative), matrix, atol=1e-9)


def test_template_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="face"):
        pose_template(np.full((3, 4, 4), np.nan), fps=25, template_fps=30)
    with pytest.raises(ValueError, match="face"):
        relative_pose(np.zeros((0, 4, 4)))
    with pytest.raises(ValueError, match="fps"):
        resample(np.zeros((3, 6)), fps=25, to_fps=0)
    with pytest.raises(ValueError, match="empty"):
        tile(np.zeros((0, 6)), 5)
