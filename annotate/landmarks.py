"""Interface of the landmark engines: the frames of one clip in, `Landmarks` out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Landmarks:
    """The face of each frame of one clip; NaN where none was found (axis 0 is the frame)."""

    points: np.ndarray
    """Landmarks `[F, 478, 3]` float32: x/width, y/height, z/width. Rows 468 .. 477 (iris) are NaN when the model has
    no iris."""
    blendshapes: np.ndarray
    """Coefficients `[F, 52]` float32 in MediaPipe's order (`_neutral` first); NaN when the model has no network for
    them."""

    @property
    def valid(self) -> np.ndarray:
        """Frames with a face, `[F]` bool."""
        return np.isfinite(self.points[:, 0, 0])


class LandmarkEngine(Protocol):
    """Finds the landmarks of clips. One call is one clip: no state passes from a call to the next."""

    name: str
    """Name in `annotate.engines.make_engine`: `litert`, `litert-tracking`, `tasks` or `tasks-image`."""

    def __call__(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """Annotate the frames of one clip (RGB uint8 `[H, W, 3]`, all of one size, 25 fps, in order)."""
        ...
