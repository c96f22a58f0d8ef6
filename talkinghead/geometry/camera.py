"""The one camera of the project, MediaPipe face geometry's virtual perspective camera, and projection into its image.

Convention:
    Camera space is in centimetres and right-handed: +x image right, +y image up, and the camera at the origin looks
    down -z, so a face has z of about -20 .. -120. The vertical field of view is 63 degrees whatever the image's size;
    the horizontal one follows from square pixels. Image coordinates have x right and y down, and are normalised by
    width and height unless a name ends in `_px`; `project` gives pixels, with the origin in the upper left corner.

Source: `Environment` and `PerspectiveCamera` of MediaPipe's face geometry module, and their defaults in the Face
Landmarker task.
"""

from __future__ import annotations

import math

import numpy as np

VERTICAL_FOV_DEG = 63.0
NEAR = 1.0  # distance of the near plane, cm
FAR = 10_000.0  # distance of the far plane, cm; only AniPortrait's projection depends on it

FOCAL = 1.0 / math.tan(math.radians(VERTICAL_FOV_DEG) / 2)
"""Focal length in half image heights: 1.6318517."""

NEAR_HEIGHT = 2.0 * NEAR * math.tan(math.radians(VERTICAL_FOV_DEG) / 2)
"""Height of the near plane in centimetres; its width is this times the aspect ratio."""

COMPAT_DEPTH = FAR * NEAR / (FAR - NEAR)
"""Factor 1.0001 of the depth in AniPortrait's projection, which reads it from another element of its perspective
matrix: its images are 0.01 % smaller about the centre, and its published weights were trained on those."""


def check_size(width: int, height: int) -> float:
    """Aspect ratio width / height of an image.

    Raises:
        ValueError: A side is not positive.
    """
    if width < 1 or height < 1:
        raise ValueError(f"image size {width} x {height} must be at least 1 x 1")
    return width / height


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
        ValueError: Wrong shapes or image size, or a point level with or behind the camera.
    """
    aspect = check_size(width, height)
    if mesh.shape[-1] != 3 or pose_matrix.shape[-2:] != (4, 4):
        raise ValueError(f"mesh {mesh.shape} and pose matrix {pose_matrix.shape} must be [..., N, 3] and [..., 4, 4]")
    # Into camera space, where the camera looks down -z.
    points = transform(mesh, pose_matrix)  # [..., N, 3]
    depth = -points[..., 2]
    if (depth <= 0).any():
        raise ValueError("a point of the mesh lies behind the camera: the pose's z must be well below 0")
    focal_x, focal_y, factor = FOCAL / aspect, FOCAL, 1.0
    if compat:
        # AniPortrait's perspective matrix is float32.
        focal_x, focal_y, factor = (float(np.float32(value)) for value in (focal_x, focal_y, COMPAT_DEPTH))
    # The quotients span -1 .. 1 over the image; pixels count from the upper left corner, y down.
    x = (focal_x * points[..., 0] / (factor * depth) + 1.0) / 2.0 * width
    y = (1.0 - focal_y * points[..., 1] / (factor * depth)) / 2.0 * height
    return np.stack((x, y), axis=-1)


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply `[..., 4, 4]` matrices to `[..., N, 3]` points, in float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return points @ np.swapaxes(matrix[..., :3, :3], -2, -1) + matrix[..., None, :3, 3]
