"""Reenactment: a driving video's expression and head motion put on the reference face.

The neutral mesh is the median of many relaxed frames, the expression is fitted to the reference's proportions, and head
motion is taken about the pose in which the driving head rests, so that a video that begins with a turned head, or with
a smile, does not twist the reference for good. (AniPortrait takes one neutral frame, copies the expression unscaled and
the rotation as it is, and the translation relative to the first frame.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix, rigid_inverse
from talkinghead.motion.expression_transfer import close_mouth, transfer_expression
from talkinghead.motion.neutral import NeutralMesh, neutral_mesh
from talkinghead.motion.smoothing import moving_average

SMOOTHING_WINDOW = 3
PoseMode = Literal["absolute", "relative"]
"""`relative`: the reference's own pose, moved as the driving head moves about where it rests. `absolute`: the driving
head's angles as they are; its place is still relative."""


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """A driving clip's motion on the reference, ready for `talkinghead.motion.landmark_motion.place`."""

    mesh: np.ndarray
    """`[F, 468, 3]` float64, cm."""
    pose: np.ndarray
    """`[F, 6]` float64, degrees and cm, relative to the reference's pose matrix."""
    neutral: NeutralMesh
    """The driving face at rest, and how it was found."""
    rest: np.ndarray
    """`[468, 3]` cm: the reference at rest, which the driving face at rest gives."""


def transfer(
    mesh: np.ndarray,
    pose_matrix: np.ndarray,
    blendshapes: np.ndarray | None,
    *,
    reference_mesh: np.ndarray,
    reference_pose_matrix: np.ndarray,
    pose_mode: PoseMode = "relative",
    pose_gain: float = 1.0,
    window: int = SMOOTHING_WINDOW,
    relax_mouth: bool = True,
) -> Transferred:
    """Carry a driving clip over to another face.

    Args:
        mesh: Driving `[F, 468, 3]` cm; frames without a face are NaN and stay NaN.
        pose_matrix: Driving `[F, 4, 4]`.
        blendshapes: Driving `[F, 52]`; None or NaN where the face model gives none.
        reference_mesh: `[468, 3]` cm, taken as being at rest.
        reference_pose_matrix: `[4, 4]`.
        pose_mode: How the head moves.
        pose_gain: Factor of the angles: those relative to rest, or the absolute ones; 0 holds the head still.
        window: Frames (odd) of the moving average over the pose.
        relax_mouth: Close a reference's open mouth first (`expression_transfer.close_mouth`).

    Raises:
        ValueError: No frame has a face, or shapes that do not fit.
    """
    neutral = neutral_mesh(mesh, blendshapes, np.isfinite(mesh[:, 0, 0]))
    if relax_mouth:
        reference_mesh = close_mouth(reference_mesh, mesh, neutral.mesh)
    moved = transfer_expression(mesh, neutral.mesh, reference_mesh)
    pose = transfer_pose(pose_matrix, reference_pose_matrix, pose_mode)
    pose = moving_average(pose, window)
    if pose_mode == "relative":
        pose[:, :3] *= pose_gain
    else:
        reference = np.asarray(reference_pose_matrix, dtype=np.float64)
        absolute = pose_from_matrix(reference @ matrix_from_pose(pose))
        absolute[:, :3] *= pose_gain
        pose = pose_from_matrix(rigid_inverse(reference) @ matrix_from_pose(absolute))
    return Transferred(mesh=moved, pose=pose, neutral=neutral, rest=np.asarray(reference_mesh, np.float64))


def transfer_pose(pose_matrix: np.ndarray, reference_pose_matrix: np.ndarray, mode: PoseMode) -> np.ndarray:
    """Head motion `[F, 6]` relative to the reference's pose.

    Convention: `reference_pose_matrix · M(result)` is the pose matrix to draw, as in `landmark_motion.place`.

    Args:
        pose_matrix: Driving `[F, 4, 4]`; NaN stays NaN.
        reference_pose_matrix: `[4, 4]`.
        mode: `relative` gives inverse(rest) · driving, so the motion is in the head's own axes. `absolute` gives the
            driving rotation, and the driving place relative to where the driving head rests, in the camera's axes.

    Raises:
        ValueError: No frame has a pose.
    """
    pose = pose_from_matrix(pose_matrix)
    present = np.isfinite(pose).all(axis=1)
    if not present.any():
        raise ValueError("no frame of the driving clip has a face")
    rest = np.median(pose[present], axis=0)
    if mode == "relative":
        return pose_from_matrix(rigid_inverse(matrix_from_pose(rest)) @ np.asarray(pose_matrix, dtype=np.float64))
    reference = np.asarray(reference_pose_matrix, dtype=np.float64)
    pose[:, 3:] += reference[:3, 3] - rest[3:]
    return pose_from_matrix(rigid_inverse(reference) @ matrix_from_pose(pose))
