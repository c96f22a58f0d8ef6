"""A renderer of another package on the command line: it gets the whole portrait, and its own options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from infer.request import AnimateRequest
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import check_video_size
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MotionKind, Pairing, Prepared, Renderer
from talkinghead.runtime.progress import Progress


class OtherRendering:
    """Any renderer that was registered; a `Rendering`.

    Args:
        renderer: Object of its class, made without arguments.
        options: Its options (`own_options`).
        request: Options of the user.
    """

    keeps_arrays = False

    def __init__(self, renderer: Renderer, options: Any, request: AnimateRequest) -> None:
        self.name = renderer.name
        self.estimated: dict[str, float] = {}
        self._renderer = renderer
        self._options = options
        self._request = request
        self._prepared: Prepared | None = None

    def find(self) -> None:
        """Its weights are its own affair."""

    def meet(self, gives: MotionKind) -> None:
        """Nothing depends on the driver."""

    @property
    def takes(self) -> tuple[MotionKind, ...]:
        """What the renderer takes."""
        return self._renderer.takes

    @property
    def compat(self) -> bool:
        """Whether it sees landmarks as AniPortrait does."""
        return any(kind.compat for kind in self.takes)

    def seconds(self) -> float | None:
        """The limit of the request."""
        return self._request.seconds(self._request.limit_seconds)

    def stage(self, portrait: Portrait, model: FaceModel) -> Portrait:
        """The whole portrait, prepared by the renderer."""
        del model
        self._prepared = self._renderer.prepare(portrait, self._options)
        check_video_size(*self._prepared.size)
        return portrait

    def load(self) -> dict[str, Any]:
        """It loads its weights when it renders."""
        return {}

    def begin(self, motion: MotionStream, pairing: Pairing, progress: Progress) -> MotionStream:
        """The motion as it is."""
        del pairing, progress
        return motion

    def frames(self, motion: MotionStream, progress: Progress) -> Iterator[np.ndarray]:
        """The renderer's frames."""
        return self._renderer.render(self._prepared, motion, seed=self._request.seed, progress=progress)

    @property
    def size(self) -> tuple[int, int]:
        """Size of its frames."""
        assert self._prepared is not None
        return self._prepared.size

    @property
    def drawn_size(self) -> tuple[int, int]:
        """The same."""
        return self.size

    @property
    def note(self) -> SyntheticNote | None:
        """That a model made the video."""
        return SyntheticNote(kind="trainedAlgorithmicMedia") if self._request.mark_synthetic else None

    def describe(self) -> dict[str, Any]:
        """Size of its frames, and the note."""
        return {"size": list(self.size), "synthetic": None if self.note is None else self.note.source_type}
