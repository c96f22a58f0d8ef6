"""Parts of a picture, turned upright and brought to a size by points that they share with a template."""

from __future__ import annotations

import cv2
import numpy as np


def cut_upright(
    picture: np.ndarray, points: np.ndarray, template: np.ndarray, width: int, height: int, *, beyond: int
) -> np.ndarray:
    """Cut out the part in which points lie as in a template. What shrinks is blurred first, so that nothing aliases.

    Args:
        picture: `[H, W]` or `[H, W, 3]`, uint8 or float32.
        points: `[P, 2]` pixels of the picture (edges at whole numbers).
        template: `[P, 2]` pixels of the result, likewise.
        width: Of the result.
        height: Of the result.
        beyond: What lies outside the picture: cv2.BORDER_REPLICATE (its border) or cv2.BORDER_CONSTANT (black).

    Returns:
        `[height, width]` or `[height, width, 3]`, of the picture's type.
    """
    matrix = similarity(points - 0.5, template - 0.5)  # OpenCV counts from the middle of the first pixel
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.5 / scale)
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=beyond)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation, scale and shift `[2, 3]` that bring points closest to others, by least squares.

    In complex numbers the best factor is ⟨source, target⟩ / ⟨source, source⟩ of the centred points (Umeyama, 1991, in
    two dimensions and without reflection).

    Args:
        source: `[P, 2]`, not all the same.
        target: `[P, 2]`.
    """
    start, end = source.mean(axis=0), target.mean(axis=0)
    one, other = (source - start) @ (1, 1j), (target - end) @ (1, 1j)
    factor = np.vdot(one, other) / np.vdot(one, one)
    turned = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack((turned, end - turned @ start))
