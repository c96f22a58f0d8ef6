"""What encoding takes from a video: some of its frames are kept, and compared with what the file gives back.

Frames are written with H.264 and 4:2:0 colour, so what a player shows is not what was handed to the encoder, also where
nothing was changed. A few frames, spread over the video, tell how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from talkinghead.media.video_source import VideoSource

SAMPLES = 8
"""Number of frames that are compared."""


class EncodingLoss:
    """Compares frames on their way into an encoder with those of the file."""

    def __init__(self, count: int) -> None:
        """Choose the frames of a video of `count` frames."""
        self._numbers = {int(number) for number in np.linspace(0, count - 1, SAMPLES)}
        self.held: dict[int, np.ndarray] = {}
        """Frames that are compared, by their numbers."""
        self.psnr_db: float | None = None
        """Mean peak signal-to-noise ratio, dB; None before `measure`, or where nothing was lost."""

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, RGB uint8 `[H, W, 3]`, of which some are kept."""
        for number, frame in enumerate(frames):
            if number in self._numbers:
                self.held[number] = frame
            yield frame

    def measure(self, path: Path) -> None:
        """Compare the kept frames with those of the file that they were written to."""
        errors = []
        with VideoSource(path) as source:
            for number, frame in enumerate(source.frames()):
                if (kept := self.held.get(number)) is not None:
                    errors.append(float(np.mean((frame.image.astype(np.float32) - kept) ** 2)))
        mean = sum(errors) / len(errors)
        self.psnr_db = round(10 * math.log10(255**2 / mean), 2) if mean else None
