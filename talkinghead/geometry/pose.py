"""Head pose as six numbers and as a matrix.

Convention:
    `pose [..., 6]` = (rx, ry, rz) extrinsic xyz Euler angles in degrees, then the translation (tx, ty, tz) in cm:
    R = Rz(rz) · Ry(ry) · Rx(rx), the head turned about the camera's x axis first. In camera space (+x image right, +y
    up, +z towards the viewer), positive pitch rx turns the face down, positive yaw ry turns it to the image's right,
    and positive roll rz turns it counter-clockwise in the image. ry lies in -90 .. 90; where it reaches the ends rx
    and rz are not separable, and rz = 0 is returned.
    `pose_matrix [..., 4, 4]` maps column vectors from canonical to camera space.
"""

from __future__ import annotations

import numpy as np

_GIMBAL = 1e-7  # cosine of ry below which only rx ± rz is determined


def pose_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Poses of pose matrices, `[..., 4, 4]` → `[..., 6]` float64, degrees and cm.

    The 3x3 part is replaced by the nearest rotation first: stored matrices carry float32 rounding and a scale of about
    1. NaN matrices give NaN.

    Raises:
        ValueError: Wrong shape, or a 3x3 part that is no rotation times a positive scale.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape[-2:] != (4, 4):
        raise ValueError(f"pose matrices have shape {matrix.shape}, must be [..., 4, 4]")
    pose = np.full((*matrix.shape[:-2], 6), np.nan)
    present = np.isfinite(matrix).all(axis=(-2, -1))
    pose[present, :3] = euler_from_rotation(nearest_rotation(matrix[present][:, :3, :3]))
    pose[present, 3:] = matrix[present][:, :3, 3]
    return pose


def matrix_from_pose(pose: np.ndarray) -> np.ndarray:
    """Pose matrices of poses, `[..., 6]` → `[..., 4, 4]` float64: the inverse of `pose_from_matrix`.

    A pose with a NaN gives a matrix of NaN only.

    Raises:
        ValueError: Wrong shape.
    """
    pose = np.asarray(pose, dtype=np.float64)
    if pose.shape[-1:] != (6,):
        raise ValueError(f"poses have shape {pose.shape}, must be [..., 6]")
    matrix = np.zeros((*pose.shape[:-1], 4, 4))
    matrix[..., :3, :3] = rotation_from_euler(pose[..., :3])
    matrix[..., :3, 3] = pose[..., 3:]
    matrix[..., 3, 3] = 1.0
    matrix[~np.isfinite(pose).all(axis=-1)] = np.nan
    return matrix


def rotation_from_euler(degrees: np.ndarray) -> np.ndarray:
    """Extrinsic xyz Euler angles `[..., 3]` in degrees → rotation `[..., 3, 3]` = Rz · Ry · Rx."""
    x, y, z = np.moveaxis(np.radians(degrees), -1, 0)
    sx, cx, sy, cy, sz, cz = np.sin(x), np.cos(x), np.sin(y), np.cos(y), np.sin(z), np.cos(z)
    rows = (
        np.stack((cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx), axis=-1),
        np.stack((sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx), axis=-1),
        np.stack((-sy, cy * sx, cy * cx), axis=-1),
    )
    return np.stack(rows, axis=-2)


def euler_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Inverse of `rotation_from_euler`: rotation `[..., 3, 3]` → degrees `[..., 3]`, ry within -90 .. 90."""
    # ry is held within -90 .. 90 by the sign of its cosine, which is never negative here.
    cos_y = np.hypot(rotation[..., 0, 0], rotation[..., 1, 0])
    free = cos_y > _GIMBAL
    # At the ends rz is taken as 0, where the middle row is (0, cos rx, -sin rx).
    x = np.where(
        free,
        np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2]),
        np.arctan2(-rotation[..., 1, 2], rotation[..., 1, 1]),
    )
    y = np.arctan2(-rotation[..., 2, 0], cos_y)
    z = np.where(free, np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0]), 0.0)
    return np.degrees(np.stack((x, y, z), axis=-1))


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation nearest to each `[..., 3, 3]` matrix in the Frobenius norm (polar factor, by SVD).

    Raises:
        ValueError: A matrix mirrors or flattens, so it is no rotation times a positive scale.
    """
    left, singular, right = np.linalg.svd(matrix)
    rotation = left @ right
    # No sign is flipped to repair a reflection: a head pose that mirrors is a damaged one.
    if (np.linalg.det(rotation) < 0).any() or (singular[..., 2] <= 1e-6 * singular[..., 0]).any():
        raise ValueError("a pose matrix holds a reflection or has no inverse")
    return rotation


def rigid_inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of pose matrices `[..., 4, 4]` (rotation times a uniform scale, translation); NaN stays NaN."""
    matrix = np.asarray(matrix, dtype=np.float64)
    linear = matrix[..., :3, :3]
    # (s R)^-1 = (s R)^T / s^2, and the squares of a rotation's nine numbers add up to 3.
    squared_scale = (linear**2).sum(axis=(-2, -1), keepdims=True) / 3
    inverse = np.zeros_like(matrix)
    inverse[..., :3, :3] = np.swapaxes(linear, -2, -1) / squared_scale
    inverse[..., :3, 3] = -(inverse[..., :3, :3] @ matrix[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse
