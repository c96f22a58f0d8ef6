"""Reenactment: a driving video's expression and head motion put on the reference face.

The expression is carried as the difference to the driving face's most neutral frame, without adapting the size of the
motion to the other face. The head's rotation is copied as it is; its translation is taken relative to the first frame
and starts where the reference's head is. This is AniPortrait's procedure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.geometry.smoothing import moving_average

SMOOTHING_WINDOW = 3
_NUM_BLENDSHAPES = 52


@dataclass(frozen=True, kw_only=True)
class Retargeted:
    """The reference's face in motion, ready for `projection.project`."""

    neutral_frame: int
    mesh: np.ndarray
    """`[F, 468, 3]` cm."""
    pose: np.ndarray
    """`[F, 6]` degrees and cm, smoothed."""

    @property
    def pose_matrix(self) -> np.ndarray:
        """`[F, 4, 4]` canonical → camera."""
        return matrix_from_pose(self.pose)


def retarget(
    mesh: np.ndarray,
    pose_matrix: np.ndarray,
    blendshapes: np.ndarray,
    *,
    reference_mesh: np.ndarray,
    reference_pose_matrix: np.ndarray,
    window: int = SMOOTHING_WINDOW,
) -> Retargeted:
    """Carry a driving clip over to a reference face.

    Args:
        mesh: Driving `[F, 468, 3]` cm; frames without a face are NaN and stay NaN.
        pose_matrix: Driving `[F, 4, 4]`.
        blendshapes: Driving `[F, 52]` (MediaPipe's order) or `[F, 51]` (without `_neutral`).
        reference_mesh: `[468, 3]` cm.
        reference_pose_matrix: `[4, 4]`.
        window: Frames of the moving average over the pose.
    """
    neutral = neutral_frame(blendshapes)
    pose = retarget_pose(pose_matrix, reference_pose_matrix)
    moved = np.asarray(mesh, dtype=np.float64) - mesh[neutral] + reference_mesh
    return Retargeted(neutral_frame=neutral, mesh=moved, pose=moving_average(pose, window))


def neutral_frame(blendshapes: np.ndarray) -> int:
    """The frame whose blendshapes sum to the least: the most relaxed face (`_neutral` itself does not count).

    Args:
        blendshapes: `[F, 52]` or `[F, 51]` without `_neutral`; NaN rows are passed over.

    Raises:
        ValueError: No frame has blendshapes, or the shape is another one.
    """
    if blendshapes.ndim != 2 or blendshapes.shape[1] not in (_NUM_BLENDSHAPES, _NUM_BLENDSHAPES - 1):
        raise ValueError(f"blendshapes have shape {blendshapes.shape}, must be [F, 52] or [F, 51]")
    sums = blendshapes[:, -(_NUM_BLENDSHAPES - 1) :].astype(np.float64).sum(axis=1)
    if not np.isfinite(sums).any():
        raise ValueError("no frame of the driving clip has blendshapes: annotate it with a model that has them")
    return int(np.nanargmin(sums))


def retarget_pose(pose_matrix: np.ndarray, reference_pose_matrix: np.ndarray) -> np.ndarray:
    """Head pose `[F, 6]`: the driving rotation, and the driving translation moved to begin at the reference's.

    Raises:
        ValueError: No frame has a pose.
    """
    pose = pose_from_matrix(pose_matrix)
    present = np.flatnonzero(np.isfinite(pose[:, 3]))
    if not len(present):
        raise ValueError("no frame of the driving clip has a face")
    pose[:, 3:] += np.asarray(reference_pose_matrix, dtype=np.float64)[:3, 3] - pose[present[0], 3:]
    return pose
