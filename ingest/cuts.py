"""Finds hard cuts in a stream of small frames.

A cut is a difference between two neighbouring frames that (1) stands out from its neighbours, which fast motion and
noise do not, and (2) lasts: the frame before it differs from all frames within reach behind it, and the other way
round, which a flash does not. Repeated frames are left out first, or every frame of a slow source would stand out.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from ingest.settings import CutSettings

THUMBNAIL = (48, 48)
"""Width and height of the images that are compared."""

_SAME = 0.3  # levels; a frame that differs less from the one before is its copy
_LASTING_SHARE = 0.5  # of the step across a cut that must still be there after `reach` frames
_BLEND_SHARE = 0.5  # the smaller of two neighbouring steps over the larger, where a cut is blended over two frames


class CutDetector:
    """Takes the frames one by one, keeps only the few that it needs, and tells the cuts in the end."""

    def __init__(self, settings: CutSettings) -> None:
        """Start with no frame."""
        self._settings = settings
        self._recent: deque[np.ndarray] = deque(maxlen=settings.reach + 2)
        self._frames: list[int] = []  # of these: frame number, step from the one before, how much of it lasts
        self._steps: list[float] = []
        self._lasting: list[float] = []
        self.steps: list[float] = []
        """Difference of each frame from the one before that is not its copy; 0 for the first."""

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, RGB uint8 `[H, W, 3]` of any size."""
        thumbnail = cv2.resize(frame, THUMBNAIL, interpolation=cv2.INTER_AREA)
        step = _difference(self._recent[-1], thumbnail) if self._recent else 0.0
        self.steps.append(step)
        if self._recent and step < _SAME:
            return
        self._frames.append(len(self.steps) - 1)
        self._steps.append(step)
        self._lasting.append(step)
        # If there is a cut before frame c, then none of the pairs (c - 1, c + b) and (c - 1 - b, c) look alike.
        newest = len(self._steps) - 1
        for back, before in enumerate(reversed(self._recent)):
            difference = _difference(before, thumbnail)
            if 1 <= back <= self._settings.reach:
                self._lasting[newest - back] = min(self._lasting[newest - back], difference)
            if back < self._settings.reach:
                self._lasting[newest] = min(self._lasting[newest], difference)
        self._recent.append(thumbnail)

    def cuts(self) -> list[int]:
        """Frames that are the first of a new shot, ascending."""
        return [self._frames[k] for k in range(1, len(self._steps)) if self._is_cut(k)]

    def _is_cut(self, k: int) -> bool:
        settings = self._settings
        step, lasting = self._steps[k], self._lasting[k]
        if lasting < max(settings.least, _LASTING_SHARE * step):
            return False
        neighbours = {i: self._steps[i] for i in range(max(1, k - 2), min(len(self._steps), k + 3)) if i != k}
        beside = max((i for i in (k - 1, k + 1) if i in neighbours), key=lambda i: neighbours[i], default=None)
        if (
            beside is not None
            and _BLEND_SHARE * step <= neighbours[beside]
            and (neighbours[beside], k) <= (step, beside)
        ):
            del neighbours[beside]  # one cut over two frames, of which the larger step counts
        needed = settings.ratio * max(1.0, settings.difference / lasting)
        return step >= needed * max(neighbours.values(), default=0.0)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    return cv2.norm(a, b, cv2.NORM_L1) / a.size
