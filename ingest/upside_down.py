"""Faces that are upside down, as where a phone's rotation flag was lost or is wrong.

A detector finds most of them, but takes them for upright ones: it puts the eyes above where the mouth is, and so do
landmarks. What tells them is a second look at the image, turned by 180°. Over 20 real clips, faces that are the right
way up in it score 0.84 to 0.97, the same ones the other way round at most 0.84, and never in the same look less than
0.09 below; what seems a face in turned images without one scores 0.69 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingest.faces import Box, Detector

LOOK_EVERY = 5
"""Detections from one look at the turned image to the next."""

_SURE = 0.8  # least score of a face that is the right way up
_BETTER = 0.05  # by which it must exceed the score of the face as it is
_SHARE = 0.5  # of the looks, above which a face is upside down
_NEARBY = 1.0  # half the side of the part of the image that is turned, in face sizes


@dataclass(frozen=True)
class Look:
    """What was found in one frame and in the same one turned by 180°."""

    frame: int
    score: float
    """Score of the largest face as it is, 0 without one."""
    turned_score: float
    """Score of the same face in the turned image, or without one of any; 0 where there is none."""

    @property
    def is_upside_down(self) -> bool:
        """Whether the face is the right way up only in the turned image."""
        return self.turned_score >= max(_SURE, self.score + _BETTER)


def look(detector: Detector, frame: int, image: np.ndarray, boxes: Sequence[Box]) -> Look:
    """Look at one frame as it is and turned by 180°.

    Args:
        detector: Face detector.
        frame: Number of the frame.
        image: Its image, RGB uint8 `[H, W, 3]`.
        boxes: Boxes of the faces that were found in it, pixels.
    """
    if not boxes:
        return Look(frame, 0.0, _best(detector, _turned(image), small_faces=True))
    # The same part of the image both ways, so that the scores compare.
    x0, y0, x1, y1 = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    x, y, reach = (x0 + x1) / 2, (y0 + y1) / 2, _NEARBY * max(x1 - x0, y1 - y0)
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    part = image[top : max(top + 1, int(y + reach)), left : max(left + 1, int(x + reach))]
    return Look(frame, _best(detector, np.ascontiguousarray(part)), _best(detector, _turned(part)))


def upside_down_share(looks: Sequence[Look], first: int, end: int) -> float:
    """Share of the looks at the frames `first .. end - 1` in which the face is upside down; 0 without any look."""
    inside = [one.is_upside_down for one in looks if first <= one.frame < end]
    return sum(inside) / len(inside) if inside else 0.0


def is_upside_down(share: float) -> bool:
    """Whether this share of looks makes a face that is upside down."""
    return share > _SHARE


def _turned(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[::-1, ::-1])


def _best(detector: Detector, image: np.ndarray, *, small_faces: bool = False) -> float:
    return max((face.score for face in detector.detect(image, small_faces=small_faces)), default=0.0)
