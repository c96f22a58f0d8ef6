"""Head poses about a rest pose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.motion.rest_pose import clip_rest_pose, placed_pose, pose_origin, relative_pose

poses = st.lists(st.tuples(*[st.floats(-40, 40)] * 3, *[st.floats(-30, 30)] * 3), min_size=1, max_size=9).map(np.array)


@given(poses)
def test_rest_and_relative_pose_give_the_pose_back(pose: np.ndarray) -> None:
    matrix = matrix_from_pose(pose)
    rest = clip_rest_pose(matrix, np.ones(len(pose), bool))
    np.testing.assert_allclose(placed_pose(relative_pose(matrix, rest), rest), matrix, atol=1e-9)
    np.testing.assert_allclose(relative_pose(rest[None], rest), 0, atol=1e-9)


def test_rest_is_the_median_of_each_number() -> None:
    pose = np.array([[0, 0, 0, 1, 2, -30], [10, 5, 1, 3, 4, -31], [90, -5, 3, 9, 0, -29], [7, 7, 7, 7, 7, 7]])
    matrix = matrix_from_pose(pose)
    matrix[3] = np.nan
    rest = clip_rest_pose(matrix, np.array([True, True, True, False]))
    np.testing.assert_allclose(pose_from_matrix(rest), [10, 0, 1, 3, 2, -30], atol=1e-9)
    assert np.isnan(relative_pose(matrix, rest)[3]).all()
    with pytest.raises(ValueError, match="no frame has a face"):
        clip_rest_pose(matrix, np.zeros(4, bool))


def test_relative_pose_by_hand() -> None:
    """At rest the head is turned by 90 degrees: one step to the image's right is one step along its own -z."""
    rest = matrix_from_pose(np.array([0, 90, 0, 0, 0, -30.0]))
    there = matrix_from_pose(np.array([0, 90, 0, 1, 0, -30.0]))
    np.testing.assert_allclose(relative_pose(there[None], rest)[0], [0, 0, 0, 0, 0, 1], atol=1e-9)


@given(poses)
def test_placed_poses_are_in_the_axes_of_the_reference(pose: np.ndarray) -> None:
    """Convention: reference · M(pose); relative poses are the way back, to 1e-9 degrees and cm."""
    reference = matrix_from_pose(np.array([10.0, -20.0, 5.0, 1.0, 2.0, -40.0]))
    placed = placed_pose(pose, reference)
    np.testing.assert_array_equal(placed, reference @ matrix_from_pose(pose))
    np.testing.assert_allclose(relative_pose(placed, reference), pose, atol=1e-9)


def test_origin_of_poses() -> None:
    pose = np.array([[0, 0, 0, 1, 2, -30], [10, 5, 1, 3, 4, -31], [20, -5, 3, 9, 0, -29.0]])
    matrix = matrix_from_pose(pose)
    matrix[0], valid = np.nan, np.array([False, True, True])
    np.testing.assert_allclose(pose_from_matrix(pose_origin(matrix, valid, "first")), pose[1], atol=1e-9)
    np.testing.assert_allclose(pose_from_matrix(pose_origin(matrix, valid, "rest")), pose[1:].mean(axis=0), atol=1e-9)
    with pytest.raises(ValueError, match="no first pose"):
        pose_origin(matrix, np.zeros(3, bool), "first")
