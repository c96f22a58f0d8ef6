"""Which frames of a clip a sample shows: a target window, and a reference from the same clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """Of target windows."""

    num_frames: int = 1
    """F."""
    long_stride: int = 1
    """Frames from one of a window to the next in the windows that show slow motion fast."""
    long_probability: float = 0.0
    """Share of those windows; the others are of consecutive frames."""

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.long_stride < 1:
            raise ValueError("num_frames and long_stride must be at least 1")
        if not 0 <= self.long_probability <= 1:
            raise ValueError(f"long_probability must be in 0 … 1, not {self.long_probability}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Frames of one sample."""

    first: int
    stride: int
    num_frames: int
    reference: int

    @property
    def frames(self) -> np.ndarray:
        """`[F]` frames of the target, ascending."""
        return self.first + self.stride * np.arange(self.num_frames)

    @property
    def span(self) -> int:
        """Frames of the clip from the first of the window to its last."""
        return (self.num_frames - 1) * self.stride + 1


def draw_window(valid: np.ndarray, shape: WindowShape, min_gap: int, draw: Callable[[str], float]) -> Window:
    """Choose a window and a reference.

    Windows whose frames all show a face are preferred to others, and so are references with a face. The stride is
    shortened where the clip is too short for it.

    Args:
        valid: `[N]` bool: frames of the clip that show a face; N is `shape.num_frames` at least.
        shape: Of the window.
        min_gap: Frames from the reference to the nearest frame of the window at least; where no frame is so far away,
            the farthest ones are chosen from.
        draw: What for → a uniform number in [0, 1).

    Returns:
        The window; each possible one is equally likely.
    """
    length = len(valid)
    assert length >= shape.num_frames, "clips that are too short are left out"
    stride = shape.long_stride if draw("stride") < shape.long_probability else 1
    if shape.num_frames > 1:
        stride = min(stride, (length - 1) // (shape.num_frames - 1))
    offsets = stride * np.arange(shape.num_frames)
    starts = np.arange(length - int(offsets[-1]))
    shown = valid[starts[:, None] + offsets].all(axis=1)
    first = _pick(starts[shown] if shown.any() else starts, draw("window"))
    distance = np.abs(np.arange(length)[:, None] - (first + offsets)).min(axis=1)
    faces = np.flatnonzero(valid) if valid.any() else np.arange(length)
    far = faces[distance[faces] >= min(min_gap, int(distance[faces].max()))]
    return Window(first=first, stride=stride, num_frames=shape.num_frames, reference=_pick(far, draw("reference")))


def _pick(choices: np.ndarray, number: float) -> int:
    return int(choices[int(number * len(choices))])
