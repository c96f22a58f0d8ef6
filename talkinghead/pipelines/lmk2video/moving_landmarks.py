"""Landmarks of a video's frames, asked for by number while they still come from a driver.

Windows ask for frames in about their order and more than once; a frame is dropped when it is finished. With open
windows only the frames at work are held. In a closed loop (AniPortrait's published weights) the last windows hold the
first frames, so all landmarks are there before the first frame is finished: 4 kB a frame.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from talkinghead.geometry.face_regions import NUM_VERTICES

_FAR = 10.0
"""Limit for landmarks, in widths and heights of the image. If no landmark is nearer, they were given in pixels."""


class MovingLandmarks:
    """Landmarks `[≥468, ≥2]` by number of the frame, x/width and y/height.

    Args:
        parts: Landmarks of the frames in order, float `[n, ≥468, ≥2]`.
        count: Number of all frames.
    """

    def __init__(self, parts: Iterable[np.ndarray], count: int) -> None:
        self._parts = iter(parts)
        self._count = count
        self._came = 0
        self._held: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, frame: int) -> np.ndarray:
        """Landmarks of a frame that is not released, taken from the driver as far as needed.

        Raises:
            ValueError: The driver ends before, or its landmarks cannot be drawn.
        """
        while self._came <= frame:
            part = next(self._parts, None)
            if part is None:
                raise ValueError(f"the landmarks end after {self._came} of {self._count} frames")
            check_landmarks("landmarks", part, 3, first=self._came)
            self._held.update(enumerate(part, self._came))
            self._came += len(part)
        return self._held[frame]

    def release(self, frames: Iterable[int]) -> None:
        """Drop frames that nobody asks for any more."""
        for frame in frames:
            self._held.pop(frame, None)


def check_landmarks(name: str, points: np.ndarray, ndim: int, *, first: int = 0) -> None:
    """Refuse landmarks that cannot be drawn.

    Args:
        name: Name of the argument, for the message.
        points: Landmarks, float `[F, ≥468, ≥2]` (`ndim` 3) or `[≥468, ≥2]` (`ndim` 2), x/width and y/height.
        ndim: Required number of axes.
        first: Number of the first frame in the video, for the message.

    Raises:
        ValueError: Wrong shape, no frames, or values that are not finite; names the first such frame.
    """
    shape = f"[{'F, ' if ndim == 3 else ''}{NUM_VERTICES} or more, 2 or 3]"
    if not isinstance(points, np.ndarray) or points.ndim != ndim or points.dtype.kind != "f":
        about = f"{points.dtype} {list(points.shape)}" if isinstance(points, np.ndarray) else type(points).__name__
        raise ValueError(f"{name} must be a float array {shape}, not {about}")
    if points.shape[-2] < NUM_VERTICES or points.shape[-1] < 2 or not len(points):
        raise ValueError(f"{name} must be {shape}, not {list(points.shape)}")

    # Only these numbers are drawn; depths, and landmarks after the 468 (irises), may hold anything.
    used = points[..., :NUM_VERTICES, :2]
    if np.isfinite(used).all():
        if np.abs(used).max(axis=-1).min() > _FAR:
            raise ValueError(f"{name} are far outside of the image: give them divided by its width and height")
        return
    if ndim == 2:
        raise ValueError(f"{name} holds values that are not finite: no face was found in the reference")
    frame = first + int(np.argmin(np.isfinite(used).all(axis=(1, 2))))
    raise ValueError(f"{name} holds values that are not finite, first in frame {frame}: no face was found there")
