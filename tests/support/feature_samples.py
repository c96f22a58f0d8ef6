"""A clip in memory that features can be computed from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from talkinghead.timebase import SAMPLES_PER_FRAME, frame_slice_of_samples


class ClipInMemory:
    """Sound and columns of one clip, read like a sample of a data set."""

    def __init__(self, audio: np.ndarray, columns: Mapping[str, np.ndarray] | None = None) -> None:
        self.num_frames = len(audio) // SAMPLES_PER_FRAME
        self._audio = audio
        self._columns = columns or {}

    def audio(self, first: int = 0, count: int | None = None) -> np.ndarray:
        return self._audio[frame_slice_of_samples(first, self.num_frames - first if count is None else count)]

    def annotation(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        return self._columns[name][first : self.num_frames if count is None else first + count]
