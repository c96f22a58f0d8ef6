"""The one camera of the project: MediaPipe face geometry's virtual perspective camera.

Convention:
    Camera space is in centimetres and right-handed: +x image right, +y image up, and the camera at the origin looks
    down -z, so a face has z of about -20 .. -120. The vertical field of view is 63 degrees whatever the image's size;
    the horizontal one follows from square pixels. Image coordinates have x right and y down, and are normalised by
    width and height unless a name ends in `_px`.

Source: `Environment` and `PerspectiveCamera` of MediaPipe's face geometry module, and their defaults in the Face
Landmarker task.
"""

from __future__ import annotations

import math

NUM_VERTICES = 468
"""Landmarks of the face mesh; rows 468 .. 477 of a 478-point set are the irises and have no metric counterpart."""

VERTICAL_FOV_DEG = 63.0
NEAR = 1.0
FAR = 10_000.0

FOCAL = 1.0 / math.tan(math.radians(VERTICAL_FOV_DEG) / 2)
"""Focal length in half image heights: 1.6318517."""

NEAR_HEIGHT = 2.0 * NEAR * math.tan(math.radians(VERTICAL_FOV_DEG) / 2)
"""Height of the near plane in centimetres; its width is this times the aspect ratio."""


def check_size(width: int, height: int) -> float:
    """Aspect ratio width / height of an image.

    Raises:
        ValueError: A side is not positive.
    """
    if width < 1 or height < 1:
        raise ValueError(f"image size {width} x {height} must be at least 1 x 1")
    return width / height
