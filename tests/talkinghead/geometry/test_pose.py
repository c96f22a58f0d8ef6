from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.pose import (
    euler_from_rotation,
    matrix_from_pose,
    nearest_rotation,
    pose_from_matrix,
    rigid_inverse,
    rotation_from_euler,
)

Golden = Callable[[str], dict[str, np.ndarray]]
ANGLE, STEEP, MOVE = st.floats(-179.9, 179.9), st.floats(-89.9, 89.9), st.floats(-200, 200)
POSE = st.tuples(ANGLE, STEEP, ANGLE, MOVE, MOVE, MOVE)


def test_goldens(golden: Golden) -> None:
    data = golden("geometry")
    pairs = np.concatenate((data["pair_euler"], data["pair_translation"]), axis=1)
    np.testing.assert_allclose(matrix_from_pose(pairs), data["pair_matrix"], atol=1e-9)
    back = pose_from_matrix(data["pair_matrix"])
    np.testing.assert_allclose(back[:, :3], data["pair_euler_back"], atol=1e-9)
    np.testing.assert_allclose(back[:, 3:], data["pair_translation"], atol=1e-12)
    pose = pose_from_matrix(data["trans_mat"])
    np.testing.assert_allclose(pose[:, :3], data["euler"], atol=1e-4)
    np.testing.assert_allclose(pose[:, 3:], data["translation"], atol=1e-9)


@given(POSE)
def test_pose_round_trip(pose: tuple[float, ...]) -> None:
    matrix = matrix_from_pose(np.array(pose))
    np.testing.assert_allclose(pose_from_matrix(matrix), pose, atol=1e-7)
    np.testing.assert_allclose(rigid_inverse(matrix) @ matrix, np.eye(4), atol=1e-9)


@given(ANGLE, st.sampled_from([-90.0, 90.0]), ANGLE)
def test_gimbal_lock_keeps_the_rotation(x: float, y: float, z: float) -> None:
    rotation = rotation_from_euler(np.array([x, y, z]))
    angles = euler_from_rotation(rotation)
    assert angles[2] == 0.0
    np.testing.assert_allclose(rotation_from_euler(angles), rotation, atol=1e-6)


@given(POSE, st.floats(0.2, 5), st.integers(0, 99))
def test_scale_and_rounding_do_not_turn_the_head(pose: tuple[float, ...], scale: float, seed: int) -> None:
    exact = matrix_from_pose(np.array(pose))
    noise = np.random.default_rng(seed).normal(0, 1e-8, (3, 3))
    rotation = nearest_rotation(scale * exact[:3, :3] + noise)
    np.testing.assert_allclose(rotation, exact[:3, :3], atol=1e-6)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_one_axis_at_a_time() -> None:
    """The order is Rz Ry Rx: the head turns about x first, about fixed axes."""
    for axis in range(3):
        degrees = np.zeros(3)
        degrees[axis] = 90.0
        turned = rotation_from_euler(degrees) @ np.roll(np.eye(3), -axis, axis=0).T[:, 1]
        np.testing.assert_allclose(turned, np.roll(np.array([0, 0, 1.0]), axis), atol=1e-12)
    x, y, z = 20.0, -35.0, 50.0
    product = (
        rotation_from_euler(np.array([0, 0, z]))
        @ rotation_from_euler(np.array([0, y, 0]))
        @ rotation_from_euler(np.array([x, 0, 0]))
    )
    np.testing.assert_allclose(rotation_from_euler(np.array([x, y, z])), product, atol=1e-14)


def test_missing_frames_stay_missing() -> None:
    poses = np.random.default_rng(0).normal(size=(2, 3, 6))
    poses[1, 0] = np.nan
    matrix = matrix_from_pose(poses)
    assert np.isnan(matrix[1, 0]).all() and np.isfinite(matrix[0]).all()
    back = pose_from_matrix(matrix)
    assert np.isnan(back[1, 0]).all()
    np.testing.assert_allclose(back[0], poses[0], atol=1e-9)
    assert np.isnan(rigid_inverse(matrix)[1, 0, :3]).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., 4, 4\]"):
        pose_from_matrix(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"\[\.\.\., 6\]"):
        matrix_from_pose(np.zeros((3, 7)))
    with pytest.raises(ValueError, match="reflection"):
        pose_from_matrix(np.diag([1.0, 1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="reflection"):
        pose_from_matrix(np.zeros((2, 4, 4)))
