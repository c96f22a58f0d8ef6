"""Faces cut upright at a fixed size, as networks that look at faces expect them."""

from __future__ import annotations

import cv2
import numpy as np

from infer.metrics.upright_cut import cut_upright

SIDE = 112
"""Of an aligned face, in pixels."""

# Where InsightFace puts the eyes, the tip of the nose and the corners of the mouth in 112 x 112 pixels (ArcFace, Deng
# et al., 2019), left to right as seen.
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_RIGHT_EYE, _LEFT_EYE, _NOSE, _MOUTH = (33, 133), (263, 362), 4, (61, 291)


def aligned_faces(video: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Faces aligned as for ArcFace.

    Args:
        video: `[F, H, W, 3]` uint8.
        landmarks: `[F, 468, 2]` x/width, y/height, finite.

    Returns:
        `[F, 112, 112, 3]` uint8; black beyond the picture.
    """
    size = (video.shape[2], video.shape[1])
    faces = np.empty((len(video), SIDE, SIDE, 3), np.uint8)
    for row, (picture, points) in enumerate(zip(video, five_points(landmarks) * size, strict=True)):
        faces[row] = cut_upright(picture, points, _TEMPLATE, SIDE, SIDE, beyond=cv2.BORDER_CONSTANT)
    return faces


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Middles of the eyes, tip of the nose, corners of the mouth: `[..., 468, 2]` → `[..., 5, 2]`."""
    eyes = [landmarks[..., corners, :].mean(axis=-2) for corners in (list(_RIGHT_EYE), list(_LEFT_EYE))]
    return np.stack((*eyes, *(landmarks[..., number, :] for number in (_NOSE, *_MOUTH))), axis=-2).astype(np.float64)
