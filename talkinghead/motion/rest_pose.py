"""Rest pose of a head in a clip, and the head's motion about it.

Convention: a relative pose is the pose of inverse(rest) · matrix, in the axes of the rest pose; so with M, which makes
a pose a matrix, `rest · M(relative)` is the head's matrix again: the head turns and moves in the axes that it has at
rest, or in a portrait, as in AniPortrait.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix, rigid_inverse


def clip_rest_pose(pose_matrix: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Rest pose of a clip's head: the matrix of the median of each of the six pose numbers.

    Args:
        pose_matrix: `[F, 4, 4]` canonical → camera.
        valid: `[F]` bool, True where the frame has a face; other frames are ignored.

    Returns:
        `[4, 4]` float64.

    Raises:
        ValueError: No frame has a face.
    """
    pose = pose_from_matrix(pose_matrix[valid.astype(bool)])
    if not len(pose):
        raise ValueError("no frame has a face, so the head has no rest pose")
    return matrix_from_pose(np.median(pose, axis=0))


def relative_pose(pose_matrix: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Head motion about a rest pose: the pose of inverse(rest) · pose_matrix, in the axes of the rest pose.

    Args:
        pose_matrix: `[F, 4, 4]`; NaN stays NaN.
        rest: `[4, 4]`, such as `clip_rest_pose` gives; or any other pose, such as a reference's.

    Returns:
        `[F, 6]` float64, degrees and cm. `placed_pose(result, rest)` is `pose_matrix` again.
    """
    return pose_from_matrix(rigid_inverse(rest) @ np.asarray(pose_matrix, dtype=np.float64))


def placed_pose(pose: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Pose matrices of a head motion about a rest pose: the inverse of `relative_pose`.

    Args:
        pose: `[F, 6]` degrees and cm, in the axes of the rest pose.
        rest: `[4, 4]` canonical → camera: a clip's rest pose, or the pose of the portrait that moves.

    Returns:
        `[F, 4, 4]` float64, canonical → camera.
    """
    return np.asarray(rest, dtype=np.float64) @ matrix_from_pose(pose)


def pose_origin(pose_matrix: np.ndarray, valid: np.ndarray, origin: Literal["rest", "first"]) -> np.ndarray:
    """Pose that the poses of a clip are relative to, `[4, 4]` canonical → camera.

    Args:
        pose_matrix: `[F, 4, 4]` canonical → camera.
        valid: `[F]` bool, True where the frame has a face.
        origin: `rest`: the median of each pose number; `first`: the pose in the first frame with a face.

    Raises:
        ValueError: No frame has a face.
    """
    if origin == "rest":
        return clip_rest_pose(pose_matrix, valid)
    if not valid.any():
        raise ValueError("no frame has a face, so there is no first pose")
    # To numbers and back: that leaves a pure rotation and translation, without the scale of a stored matrix.
    first = relative_pose(pose_matrix[valid.argmax()], np.eye(4))
    return matrix_from_pose(first)


def previous_poses(true: np.ndarray) -> np.ndarray:
    """Input of a pose decoder in each frame, `[F, 6]` → `[F, 6]`: zero, then the true poses one frame late.

    Over frames without a face (NaN) the last pose is held; before the first face it is zero.
    """
    present = np.isfinite(true).all(axis=1)
    # Number of the newest frame with a face up to each frame, -1 before the first.
    last = np.maximum.accumulate(np.where(present, np.arange(len(true)), -1))
    held = np.where(last[:, None] >= 0, true[last], 0.0)
    return np.concatenate((np.zeros((1, 6)), held[:-1]))
