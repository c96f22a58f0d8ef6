"""Lmk2Video as a renderer: a portrait and landmarks in, frames out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from talkinghead.face.portrait import Portrait
from talkinghead.models.network_settings import read_settings
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.lmk2video.moving_landmarks import MovingLandmarks
from talkinghead.pipelines.protocols import LANDMARKS, FrameSize, MotionKind
from talkinghead.runtime.progress import ProgressCallback

if TYPE_CHECKING:
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline

_INDEX, _CLASS = "model_index.json", "TalkingHeadPipeline"


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """Settings of the frames; each is a field of `ClipRequest`."""

    width: int | None = None
    """Width in pixels; None: that of the training."""
    height: int | None = None
    """Height in pixels; None: that of the training."""
    steps: int | None = None
    """Number of sampling steps; None: what suits the weights."""
    guidance: float | None = None
    """Guidance scale; None: what suits the weights."""


@dataclass(frozen=True, kw_only=True)
class PreparedPortrait:
    """A portrait and the settings with which it is animated."""

    portrait: Portrait
    width: int
    height: int
    settings: VideoSettings

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels."""
        return self.width, self.height


class Lmk2VideoRenderer:
    """Frames by the Lmk2Video networks. Its options are `VideoSettings`.

    Args:
        pipeline: Function that loads the pipeline; it is called once, when frames are first made.
        compat: Whether the weights are AniPortrait's (`Motion.landmarks`).
        fps: Frame rate of the training.
        size: Sizes of its frames.
    """

    name = "lmk2video"
    takes = (MotionKind(space=LANDMARKS),)
    size = FrameSize()

    def __init__(
        self, pipeline: Callable[[], TalkingHeadPipeline], *, compat: bool, fps: float, size: FrameSize
    ) -> None:
        self.takes = (MotionKind(space=LANDMARKS, fps=fps, compat=compat),)
        self.size = size
        self._load = pipeline
        self._pipeline: TalkingHeadPipeline | None = None

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder holds a pipeline, or has one in `lmk2video/`."""
        return any((place / _INDEX).is_file() for place in (folder, folder / cls.name))

    @classmethod
    def of_folder(cls, folder: Path, device: str = "cpu") -> Self:
        """Renderer of the pipeline in a folder, or in `lmk2video/` of it.

        Raises:
            ValueError: The folder is damaged, or holds another pipeline.
        """
        place = folder if (folder / _INDEX).is_file() else folder / cls.name
        index = read_settings(place / _INDEX, "JSON")
        if index.get("_class_name") != _CLASS:
            raise ValueError(f"{place} holds {index.get('_class_name')}, but {_CLASS} is wanted")
        size = FrameSize(width=index.get("width"), height=index.get("height"))

        def pipeline() -> TalkingHeadPipeline:
            from talkinghead.pipelines.talking_head import TalkingHeadPipeline

            return TalkingHeadPipeline.from_pretrained(place).to(device)

        return cls(pipeline, compat=bool(index.get("compat")), fps=float(index.get("fps", 25.0)), size=size)

    @property
    def pipeline(self) -> TalkingHeadPipeline:
        """The pipeline; its weights are read at the first use."""
        if self._pipeline is None:
            self._pipeline = self._load()
        return self._pipeline

    def prepare(self, portrait: Portrait | None, options: VideoSettings | None = None) -> PreparedPortrait:
        """The portrait with its settings; raises `ValueError` without a portrait, or for a size that does not fit."""
        if portrait is None:
            raise ValueError("lmk2video animates a portrait: give one")
        options = options or VideoSettings()
        width = options.width or self.size.width or portrait.width
        height = options.height or self.size.height or portrait.height
        self.size.check(width, height)
        return PreparedPortrait(portrait=portrait, width=width, height=height, settings=options)

    def render(
        self,
        prepared: PreparedPortrait,
        motion: MotionStream,
        *,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> Iterator[np.ndarray]:
        """Frames RGB uint8 `[H, W, 3]`; arguments as `protocols.Renderer.render`."""
        pipeline = self.pipeline
        return pipeline.stream(
            prepared.portrait.image,
            MovingLandmarks((pipeline.landmarks(part) for part in motion), motion.count),
            reference_landmarks=prepared.portrait.face.points,
            width=prepared.width,
            height=prepared.height,
            num_inference_steps=prepared.settings.steps,
            guidance_scale=prepared.settings.guidance,
            seed=seed,
            progress=progress,
        )
