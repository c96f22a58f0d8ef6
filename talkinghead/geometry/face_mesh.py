"""Metric face mesh and head pose from image landmarks: MediaPipe's face geometry procedure in NumPy.

The scale of the landmarks' z and the distance of the face are unknown. Two weighted similarity fits to the canonical
face find both: the first on the near plane as it is, the second after unprojecting with the first fit's scale. With
the product of the two scales the landmarks are unprojected into camera space in centimetres; a last fit gives the
head pose, and undoing it gives the mesh in canonical space.

Source: `ScreenToMetricSpaceConverter` and `FloatPrecisionProcrustesSolver` of MediaPipe's face geometry module.
Here sums are float64 and all frames are fitted at once. Because the perspective is that of `camera.py`, projecting the
mesh with its pose returns the landmarks.
"""

from __future__ import annotations

import numpy as np

from talkinghead.geometry.camera import NEAR, NEAR_HEIGHT, check_size
from talkinghead.geometry.canonical import CanonicalFace
from talkinghead.geometry.face_regions import NUM_VERTICES


def metric_mesh(landmarks: np.ndarray, width: int, height: int, face: CanonicalFace) -> tuple[np.ndarray, np.ndarray]:
    """Metric mesh and pose matrix of every frame.

    Args:
        landmarks: `[F, ≥468, 3]` x/width, y/height, z/width; a frame without a face is NaN. Rows from 468 on are
            ignored.
        width: Image width in square pixels; only the ratio to `height` matters.
        height: Image height in pixels.
        face: Canonical face to fit.

    Returns:
        mesh `[F, 468, 3]` float64, cm, canonical space (pose removed), and pose matrix `[F, 4, 4]` float64, canonical
        → camera. Its 3x3 part is a rotation times a scale that is 1 to about 1e-5. Frames without a face are NaN.

    Raises:
        ValueError: Wrong shape or image size, or landmarks that no face can have (all in one place).
    """
    aspect = check_size(width, height)
    if landmarks.ndim != 3 or landmarks.shape[1] < NUM_VERTICES or landmarks.shape[2] != 3:
        raise ValueError(f"landmarks have shape {landmarks.shape}, must be [F, {NUM_VERTICES} or more, 3]")
    points = landmarks[:, :NUM_VERTICES]
    present = np.isfinite(points).all(axis=(1, 2))
    mesh = np.full((len(points), NUM_VERTICES, 3), np.nan)
    matrix = np.full((len(points), 4, 4), np.nan)
    if present.any():
        mesh[present], matrix[present] = _fit(points[present].astype(np.float64), aspect, face)
    return mesh, matrix


def _fit(points: np.ndarray, aspect: float, face: CanonicalFace) -> tuple[np.ndarray, np.ndarray]:
    """`metric_mesh` of frames that all have a face."""
    # The landmarks on the near plane, and among them the anchors: those that have a weight in the fits.
    screen = _near_plane(points, aspect)  # [F, 468, 3]
    basis = np.flatnonzero(face.weights)
    weights = face.weights[basis]
    target = face.vertices[basis]
    anchors = screen[:, basis]  # [F, A, 3]
    depth = screen[:, :, 2].mean(axis=1)[:, None]  # [F, 1]

    # First estimate of the scale, from the near plane as it is. z changes its sign: a landmark's z grows away from the
    # camera, canonical z grows towards it.
    mirrored = anchors * (1.0, 1.0, -1.0)
    first, _, _ = similarity(target, mirrored, weights)
    # Second estimate, from points unprojected with the first. Their product puts the whole face into camera space.
    second, _, _ = similarity(target, _unproject(anchors, depth, first), weights)
    scale = first * second
    camera_points = _unproject(screen, depth, scale)

    # The head pose, and the mesh with the pose undone: (p - t) R / s inverts s R p + t, as points are rows.
    scale, rotation, translation = similarity(target, camera_points[:, basis], weights)
    matrix = np.zeros((len(points), 4, 4))
    matrix[:, :3, :3] = scale[:, None, None] * rotation
    matrix[:, :3, 3] = translation
    matrix[:, 3, 3] = 1.0
    mesh = (camera_points - translation[:, None]) @ rotation / scale[:, None, None]
    return mesh, matrix


def _near_plane(points: np.ndarray, aspect: float) -> np.ndarray:
    """Landmarks `[F, N, 3]` on the near plane: centimetres there, origin in the middle, y up, z scaled like x."""
    width = NEAR_HEIGHT * aspect
    screen = np.empty_like(points)
    screen[..., 0] = (points[..., 0] - 0.5) * width
    screen[..., 1] = (0.5 - points[..., 1]) * NEAR_HEIGHT
    screen[..., 2] = points[..., 2] * width
    return screen


def _unproject(screen: np.ndarray, depth: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Points on the near plane → camera space, for a mean depth `[F, 1]` and a scale `[F]`."""
    distance = (screen[..., 2] - depth + NEAR) / scale[:, None]
    return np.stack((screen[..., 0] * distance / NEAR, screen[..., 1] * distance / NEAR, -distance), axis=-1)


def similarity(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted similarity Procrustes fit: scale · rotation · source + translation ≈ target, without reflection.

    Args:
        source: `[N, 3]`, the same for all frames.
        target: `[F, N, 3]`.
        weights: `[N]`, not negative.

    Returns:
        scale `[F]`, rotation `[F, 3, 3]`, translation `[F, 3]`, float64.

    Raises:
        ValueError: The points of a frame all lie in one place, so that they have no scale.

    Source: S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    # Weighted centres of both, and the covariance of target and source, [F, 3, 3].
    share = weights / weights.sum()
    source_centre = share @ source
    target_centre = np.einsum("n,fnd->fd", share, target)
    centred = source - source_centre
    # The target need not be centred here: the weighted sum of the centred source is 0.
    covariance = np.einsum("fni,nj->fij", target, centred * share[:, None])
    # The rotation is the covariance's orthogonal factor; where that is a reflection, its weakest axis is flipped.
    left, singular, right = np.linalg.svd(covariance)
    sign = np.where(np.linalg.det(left @ right) < 0, -1.0, 1.0)
    left[..., 2] *= sign[:, None]
    rotation = left @ right
    # The scale is trace(R^T cov) over the source's variance. The trace is the sum of the singular values, the last one
    # signed.
    numerator = singular[:, 0] + singular[:, 1] + sign * singular[:, 2]
    scale = numerator / (share @ (centred**2).sum(axis=1))
    if (scale <= 1e-12).any():
        raise ValueError(f"landmarks of frame {int(np.argmin(scale))} (of those with a face) all lie on one spot")
    translation = target_centre - scale[:, None] * (rotation @ source_centre)
    return scale, rotation, translation
