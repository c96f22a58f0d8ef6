"""The face mesh: its vertices, its parts, and the openings of mouth and eyes.

Convention:
    Regions are vertex numbers of MediaPipe's 468-point face mesh; "left" and "right" are the subject's. Openings are
    measured on metric meshes in canonical space (cm), so that the head's turn and distance do not count.

Source of the contours: `FaceLandmarksConnections` of MediaPipe's Face Landmarker and the mesh's own topology.
"""

from __future__ import annotations

import numpy as np

NUM_VERTICES = 468
"""Landmarks of the face mesh; rows 468 .. 477 of a 478-point set are the irises and have no metric counterpart."""

# fmt: off
_UPPER_LIP = (  # outer border to inner border, each from the right corner to the left
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
    (76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306),
    (62, 183, 42, 41, 38, 12, 268, 271, 272, 407, 292),
    (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
)
_LOWER_LIP = (  # in the same order, without the corners
    (146, 91, 181, 84, 17, 314, 405, 321, 375),
    (77, 90, 180, 85, 16, 315, 404, 320, 307),
    (96, 89, 179, 86, 15, 316, 403, 319, 325),
    (95, 88, 178, 87, 14, 317, 402, 318, 324),
)
# fmt: on

LIPS: tuple[int, ...] = tuple(sorted(vertex for row in _UPPER_LIP + _LOWER_LIP for vertex in row))
"""All 80 vertices of the lips, from the outer border to the inner."""

INNER_LIPS: tuple[int, ...] = _UPPER_LIP[-1] + _LOWER_LIP[-1][::-1]
"""The 20 vertices of the inner border, once around: right corner, upper lip, left corner, lower lip."""

OUTER_LIPS: tuple[int, ...] = _UPPER_LIP[0] + _LOWER_LIP[0][::-1]
"""The 20 vertices of the outer border, in the same order."""

RIGHT_EYE: tuple[int, ...] = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
"""The lid border of the right eye, once around: outer corner, upper lid, inner corner, lower lid."""

LEFT_EYE: tuple[int, ...] = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
"""The lid border of the left eye, in the same order."""

EYES: tuple[int, ...] = RIGHT_EYE + LEFT_EYE

# fmt: off
BROWS: tuple[int, ...] = (  # right, then left: the lower border and the upper one, from the outer end
    46, 53, 52, 65, 55, 70, 63, 105, 66, 107,
    276, 283, 282, 295, 285, 300, 293, 334, 296, 336,
)
"""The 20 vertices of the eyebrows."""
# fmt: on

# fmt: off
LOWER_FACE: tuple[int, ...] = (
    0, 11, 12, 13, 14, 15, 16, 17, 18, 32, 37, 38, 39, 40, 41, 42, 43, 57, 58, 61, 62, 72, 73, 74, 76, 77, 78, 80,
    81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 95, 96, 106, 132, 135, 136, 138, 140, 146, 148, 149, 150, 152,
    164, 165, 167, 169, 170, 171, 172, 175, 176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 191, 192,
    194, 199, 200, 201, 202, 204, 206, 207, 208, 210, 211, 212, 213, 214, 215, 216, 262, 267, 268, 269, 270, 271,
    272, 273, 287, 288, 291, 292, 302, 303, 304, 306, 307, 308, 310, 311, 312, 313, 314, 315, 316, 317, 318, 319,
    320, 321, 322, 324, 325, 335, 361, 364, 365, 367, 369, 375, 377, 378, 379, 391, 393, 394, 395, 396, 397, 400,
    401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 415, 416, 418, 421, 422, 424, 426, 427, 428, 430, 431,
    432, 433, 434, 435, 436,
)
"""The 168 vertices below the nose's base (vertex 2) on MediaPipe's canonical face: mouth, jaw, chin, lower cheeks."""
# fmt: on

_LIP_TOP, _LIP_BOTTOM, _MOUTH_RIGHT, _MOUTH_LEFT = 13, 14, 61, 291

_LIDS = np.array(
    (
        (33, 160, 158, 133, 153, 144),  # right: outer corner, two of the upper lid, inner corner, two below those
        (263, 387, 385, 362, 380, 373),  # left
    )
)


def lip_gap(points: np.ndarray) -> np.ndarray:
    """Mouth opening: distance between the middles of the inner lips, |13 - 14|, in the unit of the points.

    Args:
        points: Metric meshes `[..., 468, 3]` in cm, which gives cm; or image points `[..., 468, 2]`. NaN stays NaN.

    Returns:
        `[...]`.
    """
    return np.linalg.norm(points[..., _LIP_TOP, :] - points[..., _LIP_BOTTOM, :], axis=-1)


def mouth_width(mesh: np.ndarray) -> np.ndarray:
    """Distance between the corners of the mouth, |61 - 291|, in cm: `[..., 468, 3]` → `[...]`."""
    return np.linalg.norm(mesh[..., _MOUTH_RIGHT, :] - mesh[..., _MOUTH_LEFT, :], axis=-1)


def mouth_opening_ratio(mesh: np.ndarray) -> np.ndarray:
    """Mouth opening over mouth width, `[..., 468, 3]` → `[...]`: about 0 closed, 0.5 wide open.

    A ratio, so that the annotation's `mouth_opening` does not depend on the size of the face.
    """
    return lip_gap(mesh) / mouth_width(mesh)


def eye_opening(mesh: np.ndarray) -> np.ndarray:
    """Eye aspect ratio, mean of both eyes: about 0.3 open, 0.1 closed.

    (|p2 - p6| + |p3 - p5|) / (2 |p1 - p4|) with p1 and p4 the corners, p2 and p3 on the upper lid, p5 and p6 below
    them on the lower. Source: T. Soukupová and J. Čech, "Real-Time Eye Blink Detection using Facial Landmarks", 2016.

    Args:
        mesh: `[..., 468, 3]` cm; NaN stays NaN.

    Returns:
        `[...]`.
    """
    # Each [..., 2, 3]: right and left eye.
    outer, high_outer, high_inner, inner, low_inner, low_outer = (mesh[..., _LIDS[:, k], :] for k in range(6))
    height = np.linalg.norm(high_outer - low_outer, axis=-1) + np.linalg.norm(high_inner - low_inner, axis=-1)
    return (height / (2 * np.linalg.norm(outer - inner, axis=-1))).mean(axis=-1)
