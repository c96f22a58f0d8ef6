"""What a landmark engine is: the frames of one clip in, `Landmarks` out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Landmarks:
    """The face of each frame of one clip; NaN where none was found (axis 0 is the frame)."""

    points: np.ndarray
    """`[F, 478, 3]` float32: x/width, y/height, z/width. Rows 468..477 (iris) are NaN when the model has none."""
    blendshapes: np.ndarray
    """`[F, 52]` float32 in MediaPipe's order (`_neutral` first); NaN when the model has no such network."""

    @property
    def valid(self) -> np.ndarray:
        """`[F]` bool: frames with a face."""
        return np.isfinite(self.points[:, 0, 0])


class LandmarkEngine(Protocol):
    """Landmarks of a clip. One call is one clip: no state passes from a call to the next."""

    name: str
    """Name by which `annotate.engines.make_engine` knows it: `litert`, `litert-tracking`, `tasks`, `tasks-image`."""

    def __call__(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """Annotate the frames of one clip (RGB uint8 `[H, W, 3]`, all of one size, 25 fps, in order)."""
        ...
