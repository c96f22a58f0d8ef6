"""A renderer with the settings that the user gave it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MotionKind, Pairing
from talkinghead.runtime.progress import Progress


class Rendering(Protocol):
    """A renderer and its settings. Methods are called in this order; each raises `ValueError` for a mistake."""

    name: str
    """Name of the renderer, for the sidecar."""
    estimated: dict[str, float]
    """Estimate of the seconds that frames will take, for the sidecar; known after `begin`."""
    keeps_arrays: bool
    """Whether the arrays of the motion go next to the video, rather than a video of the landmarks."""

    def find(self) -> Path | None:
        """Check that the weights are there; returns their folder, None for a renderer without any."""
        ...

    def meet(self, gives: MotionKind) -> None:
        """Settle what depends on the driver."""
        ...

    @property
    def takes(self) -> tuple[MotionKind, ...]:
        """Kinds of motion that it shows: as its name tells before `find`, and as weights and driver do after `meet`."""
        ...

    @property
    def compat(self) -> bool:
        """Whether landmarks are projected as AniPortrait does; known after `meet`."""
        ...

    def seconds(self) -> float | None:
        """Longest length that is shown, in seconds; None: no limit."""
        ...

    def stage(self, portrait: Portrait, model: FaceModel) -> Portrait:
        """The part of the portrait that is animated, as a portrait of its own."""
        ...

    def load(self) -> dict[str, Any]:
        """Load the weights; returns their provenance."""
        ...

    def begin(self, motion: MotionStream, pairing: Pairing, progress: Progress) -> MotionStream:
        """The motion in the way in which memory bears it, after an estimate of the time that it will take."""
        ...

    def frames(self, motion: MotionStream, progress: Progress) -> Iterator[np.ndarray]:
        """Frames of the video, RGB uint8 `[H, W, 3]`."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the video in pixels; known after `stage`."""
        ...

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Width and height of the images that the landmarks belong to."""
        ...

    @property
    def note(self) -> SyntheticNote | None:
        """Note in the video that it is synthetic; None: it says nothing."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings that were chosen on the way, for `result` of the sidecar."""
        ...
