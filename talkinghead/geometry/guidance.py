"""Guidance images: landmarks drawn as coloured lines, the image that tells the generator where the face is.

Convention:
    Colours are (red, green, blue), the channels of the RGB image. The drawing is AniPortrait's, bit for bit, because
    its published weights were trained on no other: face oval without the forehead, eyes, eyebrows, and each lip in four
    colours; no iris, nose or points.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from talkinghead.geometry.camera import check_size
from talkinghead.geometry.face_regions import NUM_VERTICES

CANVAS = 512
"""Side in pixels of the canvas on which lines are drawn before the image is resized to the size asked for."""
THICKNESS = 2  # width of a line in pixels of the canvas

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Stroke:
    """Lines of one colour: chains of landmark numbers, each joined to the next."""

    name: str
    colour: Colour
    chains: tuple[tuple[int, ...], ...]

    @property
    def segments(self) -> np.ndarray:
        """`[S, 2]` landmark numbers of the two ends of each line."""
        return np.array([pair for chain in self.chains for pair in pairwise(chain)])


# In draw order: a later stroke paints over an earlier one. "left" and "right" are the subject's, as in MediaPipe.
STROKES = (
    Stroke(
        "face oval without forehead",
        (10, 200, 10),
        (
            (389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152),
            (251, 389),
            (152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21),
        ),
    ),
    Stroke(
        "left eye",
        (180, 200, 10),
        ((263, 249, 390, 373, 374, 380, 381, 382, 362), (263, 466, 388, 387, 386, 385, 384, 398, 362)),
    ),
    Stroke("left eyebrow", (180, 220, 10), ((276, 283, 282, 295, 285), (300, 293, 334, 296, 336))),
    Stroke(
        "right eye",
        (10, 200, 180),
        ((33, 7, 163, 144, 145, 153, 154, 155, 133), (33, 246, 161, 160, 159, 158, 157, 173, 133)),
    ),
    Stroke("right eyebrow", (10, 220, 180), ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107))),
    Stroke("lips outer bottom left", (10, 180, 20), ((61, 146, 91, 181, 84, 17),)),
    Stroke("lips outer bottom right", (20, 10, 180), ((17, 314, 405, 321, 375, 291),)),
    Stroke("lips inner bottom left", (100, 100, 30), ((78, 95, 88, 178, 87, 14),)),
    Stroke("lips inner bottom right", (100, 150, 50), ((14, 317, 402, 318, 324, 308),)),
    Stroke("lips outer top left", (20, 80, 100), ((61, 185, 40, 39, 37, 0),)),
    Stroke("lips outer top right", (80, 100, 20), ((0, 267, 269, 270, 409, 291),)),
    Stroke("lips inner top left", (120, 100, 200), ((78, 191, 80, 81, 82, 13),)),
    Stroke("lips inner top right", (150, 120, 100), ((13, 312, 311, 310, 415, 308),)),
)
_SEGMENTS = tuple((stroke.segments, stroke.colour) for stroke in STROKES)


def draw_guidance(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Draw one frame's landmarks.

    Args:
        points: `[≥468, ≥2]` x/width, y/height. A point outside 0 .. 1, or NaN, is dropped with the lines that touch
            it, so a frame without a face gives a black image.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        RGB uint8 `[height, width, 3]`.

    Raises:
        ValueError: Wrong shape or size.
    """
    check_size(width, height)
    if points.ndim != 2 or points.shape[0] < NUM_VERTICES or points.shape[1] < 2:
        raise ValueError(f"points have shape {points.shape}, must be [{NUM_VERTICES} or more, 2 or 3]")
    # To pixels of the canvas. Rounded to float32 first: at a pixel's border a float64 could fall on the other side.
    xy = points[:NUM_VERTICES, :2].astype(np.float32)
    shown = np.all((xy >= 0) & (xy <= 1), axis=1)
    pixels = np.floor(np.where(shown[:, None], xy, np.float32(0)) * CANVAS).astype(np.int32)
    np.minimum(pixels, CANVAS - 1, out=pixels)  # a coordinate of exactly 1 belongs to the last pixel

    # One colour after the other; a line is left out when one of its ends is.
    canvas = np.zeros((CANVAS, CANVAS, 3), dtype=np.uint8)
    for segments, colour in _SEGMENTS:
        lines = pixels[segments[shown[segments].all(axis=1)]]
        if len(lines):
            # Polylines of two points give the pixels of cv2.line, in one call per colour.
            cv2.polylines(canvas, list(lines), False, colour, THICKNESS, cv2.LINE_8)
    if (width, height) == (CANVAS, CANVAS):
        return canvas
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR)
