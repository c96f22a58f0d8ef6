"""Projection of a metric mesh into the image.

Convention: `camera.py`; the result is in pixels with the origin in the image's upper left corner, y down.
"""

from __future__ import annotations

import numpy as np

from talkinghead.geometry.camera import FAR, FOCAL, NEAR, check_size

COMPAT_DEPTH = FAR * NEAR / (FAR - NEAR)
"""AniPortrait divides by this times the depth (it reads the divisor from another element of its perspective matrix),
so its pictures are 0.01 % smaller about the centre. Its published weights have seen those."""


def project(mesh: np.ndarray, pose_matrix: np.ndarray, width: int, height: int, *, compat: bool = False) -> np.ndarray:
    """Image points of meshes under poses.

    Args:
        mesh: `[..., N, 3]` cm, canonical space.
        pose_matrix: `[..., 4, 4]` canonical → camera; leading dimensions broadcast with those of `mesh`.
        width: Image width in square pixels.
        height: Image height in pixels.
        compat: Reproduce AniPortrait's projection to 1e-12 px, with its depth factor and its float32 constants
            (up to 0.07 px from the exact one), for its published weights.

    Returns:
        `[..., N, 2]` float64 pixels. Frames with NaN stay NaN.

    Raises:
        ValueError: Wrong shapes or image size, or a point beside or behind the camera.
    """
    aspect = check_size(width, height)
    if mesh.shape[-1] != 3 or pose_matrix.shape[-2:] != (4, 4):
        raise ValueError(f"mesh {mesh.shape} and pose matrix {pose_matrix.shape} must be [..., N, 3] and [..., 4, 4]")
    points = transform(mesh, pose_matrix)
    depth = -points[..., 2]
    if (depth <= 0).any():
        raise ValueError("a point of the mesh lies behind the camera: the pose's z must be well below 0")
    focal_x, focal_y, factor = FOCAL / aspect, FOCAL, 1.0
    if compat:
        focal_x, focal_y, factor = (float(np.float32(value)) for value in (focal_x, focal_y, COMPAT_DEPTH))
    x = (focal_x * points[..., 0] / (factor * depth) + 1.0) / 2.0 * width
    y = (1.0 - focal_y * points[..., 1] / (factor * depth)) / 2.0 * height
    return np.stack((x, y), axis=-1)


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply `[..., 4, 4]` matrices to `[..., N, 3]` points, in float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return points @ np.swapaxes(matrix[..., :3, :3], -2, -1) + matrix[..., None, :3, 3]
