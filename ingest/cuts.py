"""Finds hard cuts in a stream of small frames.

A cut is a difference between two neighbouring frames that (1) is large, (2) stands out from its neighbours, which fast
motion and noise do not, and (3) lasts: the frames before differ from all frames behind it within reach, and the other
way round, which a flash does not.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from ingest.settings import CutSettings

THUMBNAIL = (48, 48)
"""Width and height of the images that are compared."""


class CutDetector:
    """Takes the frames one by one, keeps only the few that it needs, and tells the cuts in the end."""

    def __init__(self, settings: CutSettings) -> None:
        self._settings = settings
        self._recent: deque[np.ndarray] = deque(maxlen=2 * settings.reach)
        self.steps: list[float] = []
        """Difference of each frame from the one before; 0 for the first. Mean levels, 0 .. 255."""
        self._lasting: list[float] = []

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, RGB uint8 `[H, W, 3]` of any size."""
        thumbnail = cv2.resize(frame, THUMBNAIL, interpolation=cv2.INTER_AREA)
        step = _difference(self._recent[-1], thumbnail) if self._recent else 0.0
        self.steps.append(step)
        self._lasting.append(step)
        self._recent.append(thumbnail)
        newest = len(self.steps) - 1
        reach = self._settings.reach
        # Frames that may not look like each other if there is a cut before frame k: (k-1, k+b) and (k-1-a, k).
        for back in range(1, min(reach, newest - 1) + 1):
            cut = newest - back
            self._lasting[cut] = min(self._lasting[cut], _difference(self._recent[-back - 2], thumbnail))
        for back in range(1, min(reach, newest)):
            self._lasting[newest] = min(self._lasting[newest], _difference(self._recent[-back - 2], thumbnail))

    def cuts(self) -> list[int]:
        """Frames that are the first of a new shot, ascending."""
        settings = self._settings
        steps = np.array([0.0, 0.0, *self.steps, 0.0, 0.0])
        found = []
        for k in range(1, len(self.steps)):
            lasting = self._lasting[k]
            if lasting < settings.min_difference:
                continue
            neighbours = np.delete(steps[k : k + 5], 2)
            stands_out = steps[k + 2] >= settings.min_ratio * neighbours.max()
            peak = steps[k + 2] >= neighbours.max()
            if stands_out or (lasting >= settings.sure_difference and peak):
                found.append(k)
        return found


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    return cv2.norm(a, b, cv2.NORM_L1) / a.size
