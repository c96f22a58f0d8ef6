"""A renderer that draws a face's landmarks: what a driver asks for, without weights, in no time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from talkinghead.face.portrait import Portrait
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import LANDMARKS, FrameSize, MotionKind
from talkinghead.runtime.progress import ProgressCallback

STAGE = "draw and encode"
"""Name of its stage for progress callbacks."""


@dataclass(frozen=True, kw_only=True)
class DrawnSize:
    """Size of drawn frames; also what `LandmarkRenderer.prepare` makes of a portrait."""

    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height


class LandmarkRenderer:
    """Landmarks drawn as guidance images (`geometry.guidance`). Its options are a `DrawnSize`.

    Args:
        compat: Whether landmarks are projected as AniPortrait does, for motion of its published weights.
    """

    name = "landmarks"
    takes = (MotionKind(space=LANDMARKS),)
    size = FrameSize(step=2)

    def __init__(self, *, compat: bool = False) -> None:
        self.takes = (MotionKind(space=LANDMARKS, compat=compat),)
        self._compat = compat

    def prepare(self, portrait: Portrait | None, options: DrawnSize | None = None) -> DrawnSize:
        """The size of the frames: that of the options, else the portrait's in even numbers.

        Raises:
            ValueError: Neither is given, or the size is odd.
        """
        if options is None:
            if portrait is None:
                raise ValueError("drawn landmarks need a size or a portrait")
            options = DrawnSize(width=portrait.width // 2 * 2, height=portrait.height // 2 * 2)
        self.size.check(*options.size)
        return options

    def render(
        self, prepared: DrawnSize, motion: MotionStream, *, seed: int = 0, progress: ProgressCallback | None = None
    ) -> Iterator[np.ndarray]:
        """Frames RGB uint8 `[H, W, 3]`; arguments as `protocols.Renderer.render`."""
        del seed  # nothing is random
        done = 0
        if progress is not None:
            progress(STAGE, 0, motion.count)
        for part in motion:
            for points in part.landmarks(compat=self._compat):
                yield draw_guidance(points, *prepared.size)
                done += 1
                if progress is not None:
                    progress(STAGE, done, motion.count)
