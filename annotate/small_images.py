"""Small grey images of a clip's frames, taken as the frames pass by: what changes in a clip, without a second decode.

The longer side is 128 pixels, whatever the clip's size: a face that fills half of the frame has 64, on which a blink
shows and most of the noise is averaged away. A frame leaves 16 kB at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

SMALL_SIZE = 128
"""Longer side of an image in pixels."""


class SmallImages:
    """Takes the images of the frames that pass through `watch`. One serves one clip."""

    def __init__(self) -> None:
        self._taken: list[np.ndarray] = []

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the frames on unchanged (RGB uint8 `[H, W, 3]`, all of one size), after an image was taken of each."""
        for frame in frames:
            self._taken.append(small_image(frame))
            yield frame

    def stacked(self) -> np.ndarray:
        """All images that were taken, `[F, h, w]` uint8."""
        return np.stack(self._taken) if self._taken else np.empty((0, 1, 1), np.uint8)


def small_image(frame: np.ndarray) -> np.ndarray:
    """Grey image `[h, w]` uint8 of a frame, RGB uint8 `[H, W, 3]`."""
    scale = SMALL_SIZE / max(frame.shape[:2])
    height, width = (max(1, round(length * scale)) for length in frame.shape[:2])
    # Halves are by far the fastest to make; one more step gives the exact size.
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    while max(grey.shape) >= 2 * SMALL_SIZE and min(grey.shape) > 1:
        grey = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    shrinks = max(grey.shape) > SMALL_SIZE
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
