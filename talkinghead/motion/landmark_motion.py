"""A face in motion: metric meshes and head poses, and where their points lie in the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkinghead.geometry.camera import project
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.geometry.pose import matrix_from_pose

_CHUNK = 500
"""Number of frames projected at once: float64 copies of more would cost more memory than the result."""


@dataclass(frozen=True, kw_only=True)
class LandmarkMotion:
    """Motion of one face over F frames."""

    mesh: np.ndarray
    """`[F, 468, 3]` float32, cm, canonical space (pose removed)."""
    pose: np.ndarray
    """`[F, 6]` float64, degrees and cm: the head relative to its pose in the reference."""
    pose_matrix: np.ndarray
    """`[F, 4, 4]` float64, canonical → camera: the reference's matrix times the matrix of `pose`."""
    landmarks: np.ndarray
    """`[F, 468, 2]` float32, x/width and y/height; outside 0 .. 1 when the head leaves the image."""
    fps: float
    """Frame rate in frames per second."""

    def __len__(self) -> int:
        return len(self.mesh)


def place(
    mesh: np.ndarray,
    pose: np.ndarray,
    *,
    reference_pose_matrix: np.ndarray,
    width: int,
    height: int,
    fps: float,
    compat: bool = False,
) -> LandmarkMotion:
    """Put a moving face where the reference's head is.

    Convention: pose_matrix[t] = reference_pose_matrix · M(pose[t]), where M makes a pose a matrix: the head turns and
    moves in the axes it has in the reference, as in AniPortrait.

    Args:
        mesh: `[F, 468, 3]` cm.
        pose: `[F, 6]` degrees and cm, relative to the reference.
        reference_pose_matrix: `[4, 4]` canonical → camera.
        width: Width of the reference image in pixels; only its ratio to `height` matters.
        height: Height of the reference image in pixels.
        fps: Frame rate of the motion.
        compat: Project as AniPortrait does (`camera.project`).

    Returns:
        The motion with its pose matrices and projected landmarks.

    Raises:
        ValueError: Wrong shapes, values that are not finite, or a head that moves behind the camera.
    """
    if mesh.shape[1:] != (NUM_VERTICES, 3) or pose.shape != (len(mesh), 6) or not len(mesh):
        raise ValueError(f"mesh {mesh.shape} and pose {pose.shape} must be [F, {NUM_VERTICES}, 3] and [F, 6]")
    if not (np.isfinite(mesh).all() and np.isfinite(pose).all()):
        raise ValueError("the predicted motion holds values that are not finite: the weights are damaged")
    # The poses are relative: the reference's matrix puts the head in front of the camera. [F, 4, 4]
    pose_matrix = np.asarray(reference_pose_matrix, dtype=np.float64) @ matrix_from_pose(pose)
    landmarks = np.empty((len(mesh), NUM_VERTICES, 2), np.float32)
    for first in range(0, len(mesh), _CHUNK):
        part = slice(first, first + _CHUNK)
        pixels = project(mesh[part], pose_matrix[part], width, height, compat=compat)
        landmarks[part] = pixels / (width, height)  # [n, 468, 2], normalised
    return LandmarkMotion(
        mesh=mesh.astype(np.float32, copy=False),
        pose=np.asarray(pose, dtype=np.float64),
        pose_matrix=pose_matrix,
        landmarks=landmarks,
        fps=fps,
    )
