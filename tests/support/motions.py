"""Motions for tests: placed about a reference's pose, and a face that talks, turns and blinks by a seed."""

from __future__ import annotations

import numpy as np

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LOWER_FACE
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.blink import close_eyes
from talkinghead.motion.motion import Motion
from talkinghead.motion.rest_pose import placed_pose

FACE = mean_face().vertices.astype(np.float32)
AHEAD = matrix_from_pose(np.array([3.0, -5.0, 2.0, 0.5, 1.0, -35.0]))
"""Pose of a portrait's head."""


def motion_about(
    mesh: np.ndarray,
    pose: np.ndarray,
    *,
    reference_pose_matrix: np.ndarray,
    width: int,
    height: int,
    fps: float = 25.0,
    neutral: np.ndarray = FACE,
) -> Motion:
    """Meshes `[F, 468, 3]` under a head that moves about a reference's pose, `[F, 6]`."""
    return Motion(
        pose_matrix=placed_pose(pose, reference_pose_matrix),
        neutral=neutral.astype(np.float32),
        mesh=mesh.astype(np.float32),
        valid=np.ones(len(mesh), bool),
        fps=fps,
        width=width,
        height=height,
    )


def a_motion(
    frames: int, seed: int = 0, *, fps: float = 25.0, gaps: tuple[int, ...] = (), eyes: bool = False
) -> Motion:
    """A face that talks, turns and blinks, smoothly; not valid, and NaN, in the frames of `gaps`."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / fps

    def wave(size: int) -> np.ndarray:
        rates, phases = rng.uniform(0.3, 2.0, size), rng.uniform(0, 6.28, size)
        return np.sin(6.28 * rates * time[:, None] + phases)  # [F, size]

    mesh = np.repeat(FACE[None], frames, axis=0)
    mesh[:, list(LOWER_FACE), 1] -= (0.4 + 0.4 * wave(1)).astype(np.float32)
    shut = np.clip(wave(1)[:, 0], 0, 1)
    mesh = close_eyes(mesh, shut)
    pose = wave(6) * (12, 15, 5, 1, 1, 2)
    motion = motion_about(mesh, pose, reference_pose_matrix=AHEAD, width=640, height=480, fps=fps)
    valid = np.ones(frames, bool)
    valid[list(gaps)] = False
    matrix = motion.pose_matrix.copy()
    matrix[~valid], mesh[~valid] = np.nan, np.nan
    return Motion(
        pose_matrix=matrix,
        neutral=FACE,
        mesh=mesh,
        eyes=np.where(valid[:, None], shut[:, None].repeat(2, axis=1), np.nan).astype(np.float32) if eyes else None,
        valid=valid,
        fps=fps,
        width=640,
        height=480,
    )
