"""What is odd about a driving video, seen in passing: cuts, and more than one face."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from talkinghead.timebase import FPS

if TYPE_CHECKING:
    from talkinghead.face.model import FaceModel

log = logging.getLogger(__name__)

_LOOK_EVERY = 12
"""Frames from one count of faces to the next: twice a second."""
_MANY_LOOKS = 0.2  # share of the looks in which there is a second face, from which on it is no mistake of the detector


class DrivingChecks:
    """Looks at the frames of a driving video, one after the other."""

    def __init__(self, model: FaceModel) -> None:
        from ingest.cuts import CutDetector
        from ingest.settings import CutSettings
        from talkinghead.face.detector import FaceDetector

        self._cuts = CutDetector(CutSettings())
        self._detector = FaceDetector(model)
        self._frames = self._looks = self._several = 0

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, RGB uint8 `[H, W, 3]`."""
        self._cuts.add(frame)
        if self._frames % _LOOK_EVERY == 0:
            self._looks += 1
            self._several += len(self._detector.detect(frame)) > 1
        self._frames += 1

    def warn(self, path: Path, points: np.ndarray) -> None:
        """Say what was seen.

        Args:
            path: The video, for the text.
            points: `[F, N, 3]`: the landmarks that were followed.
        """
        if cuts := self._cuts.cuts():
            times = ", ".join(f"{cut / FPS:.2f}" for cut in cuts[:5]) + (", …" if len(cuts) > 5 else "")
            log.warning(
                "warning: the driving video %s has a cut at %s s: where another face follows, the portrait's is"
                " twisted; take one shot of it (--limit-seconds, or cut the video)",
                path,
                times,
            )
        if self._several > _MANY_LOOKS * self._looks:
            x = float(np.nanmedian(points[:, :, 0]))
            log.warning(
                "warning: the driving video %s shows several faces: the one at %.0f %% of its width drives; crop the"
                " video to take another",
                path,
                100 * x,
            )
