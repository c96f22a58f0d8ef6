"""The portrait of the embedded sample, and the contours of its mouth, eyes and jaw.

The image is NASA's official portrait of Eileen Collins (public domain), which scikit-image ships inside its wheel as
`skimage.data.astronaut()`: nothing is downloaded. The contours below were measured once on that image, in pixels of
its 512 x 512 frame (pixel i covers [i, i + 1)), so that drawing the sample needs no landmark model.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import skimage.data

SIZE = 512
"""Side of the image, pixels."""
TEXTURE_SCALE = 3
"""Texture pixels per image pixel: the face is posed on a finer texture, so that two samplings do not blur it."""


@dataclass(frozen=True)
class Contour:
    """A curve across the face with one y for each x; constant beyond its ends."""

    points: tuple[tuple[float, float], ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Height y of the contour at each `x`, any shape, image pixels."""
        known = np.array(self.points)
        return np.interp(x, known[:, 0], known[:, 1])


def _read_contours(table: str) -> dict[str, Contour]:
    """Contours by name, from words: each name is followed by its points as `x,y`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for word in table.split():
        # A word without a comma is a name; points belong to the newest one.
        x, comma, y = word.partition(",")
        if comma:
            found[next(reversed(found))].append((float(x), float(y)))
        else:
            found[word] = []
    return {name: Contour(tuple(points)) for name, points in found.items()}


# From the left of the image to the right. The lips are parted by a smile: 6 px in the middle.
_CONTOURS = _read_contours(
    """
    upper-lip-outer
        202.3,139.2 204.7,138.9 207.8,138.9 211.7,139.1 217.3,139.4 223.4,140.6 229.7,139.8 235.2,139.9
        239.2,140.0 242.2,140.2 244.5,140.6
    upper-lip-inner
        203.9,139.7 206.4,140.1 209.4,140.7 213.1,141.4 217.7,142.4 223.3,143.2 229.0,142.8 233.7,142.2
        237.4,141.7 240.4,141.4 242.9,141.1
    lower-lip-inner
        203.9,139.7 206.9,142.9 209.5,145.1 213.2,147.1 217.6,148.4 223.0,149.2 228.3,148.9 233.0,147.7
        236.7,146.0 239.5,144.0 242.9,141.1
    lower-lip-outer
        202.3,139.2 204.4,143.4 207.2,147.5 211.2,151.3 216.5,153.7 222.7,154.7 229.1,154.1 234.4,152.0
        238.7,148.5 242.0,144.6 244.5,140.6
    jaw
        181.3,128.8 182.6,139.8 185.3,149.0 189.1,156.1 194.6,162.7 199.7,167.7 205.3,172.3 212.2,175.9
        221.4,177.4 230.7,176.9 238.0,174.1 244.1,170.1 249.7,165.5 256.1,159.4 260.9,152.7 265.0,143.9
        267.7,133.3
    left-eye-upper
        195.3,100.6 196.1,99.9 197.2,99.1 199.2,98.2 202.6,97.8 206.1,98.4 209.7,100.1 212.4,102.3 213.6,103.6
    left-eye-lower
        195.3,100.6 196.7,101.9 198.3,102.9 200.7,103.7 204.2,104.2 207.6,104.0 210.8,103.8 212.8,103.8
        213.6,103.6
    right-eye-upper
        236.4,104.9 237.8,103.6 240.6,101.7 244.3,100.3 248.1,100.2 251.4,101.0 253.5,102.2 254.6,103.1
        255.3,103.8
    right-eye-lower
        236.4,104.9 237.3,105.1 239.2,105.4 242.3,106.0 245.9,106.5 249.4,106.4 252.0,105.8 253.7,105.0
        255.3,103.8
    """
)
UPPER_LIP_OUTER = _CONTOURS["upper-lip-outer"]
UPPER_LIP_INNER = _CONTOURS["upper-lip-inner"]
LOWER_LIP_INNER = _CONTOURS["lower-lip-inner"]
LOWER_LIP_OUTER = _CONTOURS["lower-lip-outer"]
JAW = _CONTOURS["jaw"]
MOUTH_CENTRE = (223.4, 143.5)
SMILE_GAP = 6.0
"""Gap between the inner lips in the image, pixels."""
JAW_HALF_WIDTH = 44.0
"""Distance from the middle of the mouth to where the jaw no longer moves, pixels."""
NOSE_BASE = 130.0
"""Height y of the nose's base, the fixed upper row of the mouth's mesh."""
COLLAR = 208.0
"""Height y of the collar, the fixed lower row of the mouth's mesh."""


@dataclass(frozen=True)
class Eye:
    """Lid edges of one eye."""

    upper: Contour
    lower: Contour

    @property
    def span(self) -> tuple[float, float]:
        """Positions x of the two corners, from left to right."""
        return self.upper.points[0][0], self.upper.points[-1][0]


EYES = (
    Eye(upper=_CONTOURS["left-eye-upper"], lower=_CONTOURS["left-eye-lower"]),
    Eye(upper=_CONTOURS["right-eye-upper"], lower=_CONTOURS["right-eye-lower"]),
)

HEAD_CENTRE = (226.0, 112.0)
"""Middle of the head, x, y."""
NECK = (226.0, 188.0)
"""Point about which the head turns, x, y."""


def portrait_texture() -> np.ndarray:
    """Portrait as a texture, RGB uint8 `[1536, 1536, 3]`."""
    # Another image under this name would not fit the contours above.
    image = skimage.data.astronaut()
    assert image.shape == (SIZE, SIZE, 3), f"scikit-image's astronaut is {image.shape}"
    size = (SIZE * TEXTURE_SCALE, SIZE * TEXTURE_SCALE)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def smoothstep(value: np.ndarray) -> np.ndarray:
    """Soft step: 0 up to 0, 1 from 1 on, cubic 3t² - 2t³ between; any shape."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)
