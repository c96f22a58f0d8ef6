"""Drawn landmarks on the command line: no weights, and the arrays of the motion next to the video."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from infer.framing import video_size
from infer.request import PortraitOptions
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.landmark_renderer import DrawnSize, LandmarkRenderer
from talkinghead.pipelines.protocols import MotionKind, Pairing
from talkinghead.runtime.progress import Progress


class LandmarkRendering:
    """Landmarks of the whole portrait; a `Rendering`. They are projected as the driver's weights want it."""

    name = LandmarkRenderer.name
    keeps_arrays = True
    note = None  # lines on black deceive nobody

    def __init__(self, request: PortraitOptions) -> None:
        self._request = request
        self._renderer = LandmarkRenderer()
        self._size: DrawnSize | None = None
        self.compat = False
        self.estimated: dict[str, float] = {}

    def find(self) -> None:
        """There are no weights."""

    def meet(self, gives: MotionKind) -> None:
        """Take the projection of the driver's weights."""
        self.compat = gives.compat
        self._renderer = LandmarkRenderer(compat=gives.compat)

    @property
    def takes(self) -> tuple[MotionKind, ...]:
        """Landmarks, at any rate."""
        return self._renderer.takes

    def seconds(self) -> float | None:
        """The limit of the request."""
        return self._request.limit_seconds

    def stage(self, portrait: Portrait, model: FaceModel) -> Portrait:
        """The whole portrait."""
        del model
        width, height = video_size(portrait.width, portrait.height, self._request.width, self._request.height)
        self._size = self._renderer.prepare(portrait, DrawnSize(width=width, height=height))
        return portrait

    def load(self) -> dict[str, Any]:
        """There are no weights."""
        return {}

    def begin(self, motion: MotionStream, pairing: Pairing, progress: Progress) -> MotionStream:
        """The motion as it is."""
        del pairing, progress
        return motion

    def frames(self, motion: MotionStream, progress: Progress) -> Iterator[np.ndarray]:
        """Guidance images, drawn as the encoder asks for them."""
        assert self._size is not None
        return self._renderer.render(self._size, motion, progress=progress)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the video in pixels."""
        assert self._size is not None
        return self._size.size

    @property
    def drawn_size(self) -> tuple[int, int]:
        """The same."""
        return self.size

    def describe(self) -> dict[str, Any]:
        """Size of the video."""
        return {"size": list(self.size)}
