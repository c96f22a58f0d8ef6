"""Generated images on the command line: the weights, the part of the portrait that is animated, and pasting it back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer.estimate import say_how_long
from infer.framing import PasteBack, face_crop, frame_size, whole_crop
from infer.portrait import crop_portrait
from infer.request import AnimateRequest, AudioRequest, GenerationOptions, VideoRequest
from infer.weights.adapters import PIPELINE, find_adapters, refuse_left_over
from infer.weights.kept import kept
from infer.weights.pipeline_weights import PipelinePlace, find_pipeline, load_pipeline
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Crop, Portrait
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import check_video_size
from talkinghead.models.noise_schedule import NoiseSchedule
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.lmk2video.renderer import Lmk2VideoRenderer, VideoSettings
from talkinghead.pipelines.memory import device_memory, fitting_preset, memory_preset, out_of_memory_explained
from talkinghead.pipelines.protocols import FrameSize, MotionKind, Pairing
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.runtime.device import choose_device, named_dtype
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)


Request = AnimateRequest | AudioRequest | VideoRequest


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The portrait and the settings with which it is animated, checked before weights are loaded."""

    whole: Portrait
    """Whole portrait as the user gave it."""
    crop: Crop
    """Box in the whole portrait that is animated."""
    cropped: Portrait
    """Content of the box, as a portrait of its own."""
    size: tuple[int, int]
    """Width and height of the generated images in pixels."""


class Lmk2VideoRendering:
    """A pipeline's images of the portrait's crop; a `Rendering`.

    Args:
        request: Options of the user.
        speaks: Whether speech models take part, which adapters may be for.
    """

    name = Lmk2VideoRenderer.name
    keeps_arrays = False

    def __init__(self, request: Request, *, speaks: bool) -> None:
        self._request = request
        self._speaks = speaks
        self._device = ""
        self._place: PipelinePlace | None = None
        self._stage: _Stage | None = None
        self._pipeline: TalkingHeadPipeline | None = None
        self._paste: PasteBack | None = None
        self.estimated: dict[str, float] = {}

    def find(self) -> Path:
        """Find the pipeline and its adapter, and choose the device."""
        if self._request.weights is None:
            raise ValueError("the renderer lmk2video needs --weights")
        place = find_pipeline(self._request.weights)
        adapters = find_adapters(self._request.adapter)
        if not self._speaks:
            refuse_left_over(adapters, [PIPELINE])
        self._place = replace(place, adapter=adapters.get(PIPELINE))
        self._device = choose_device(self._request.device)
        return place.path

    def meet(self, gives: MotionKind) -> None:
        """Nothing depends on the driver: the pipeline's weights say how landmarks are projected."""

    @property
    def takes(self) -> tuple[MotionKind, ...]:
        """Landmarks; after `find`, at the frame rate of the weights."""
        return Lmk2VideoRenderer.takes if self._place is None else self._renderer.takes

    @property
    def compat(self) -> bool:
        """Whether the pipeline's weights are AniPortrait's."""
        return self._found.compat

    @property
    def _found(self) -> PipelinePlace:
        assert self._place is not None
        return self._place

    @property
    def _ready(self) -> _Stage:
        assert self._stage is not None
        return self._stage

    @property
    def _loaded(self) -> TalkingHeadPipeline:
        assert self._pipeline is not None
        return self._pipeline

    @property
    def _steps_and_guidance(self) -> tuple[int, float]:
        return self._request.steps_and_guidance(self._loaded.config["distilled"])

    @property
    def _renderer(self) -> Lmk2VideoRenderer:
        place = self._found
        size = FrameSize(width=place.size[0], height=place.size[1], step=place.size_step)
        return Lmk2VideoRenderer(lambda: self._loaded, compat=place.compat, fps=place.fps, size=size)

    def seconds(self) -> float | None:
        """The limit of the request, or of a preview."""
        return self._request.seconds(self._request.limit_seconds)

    def stage(self, portrait: Portrait, model: FaceModel) -> Portrait:
        """Choose the size of the images and the part that is animated."""
        request, place = self._request, self._found
        # Size of the generated images. A box around a face has the aspect that the weights know; the whole image its
        # own.
        aspect = portrait.width / portrait.height if request.crop == "none" else None
        size = frame_size(
            request.width,
            request.height,
            trained=place.size,
            aspect=aspect,
            step=place.size_step,
            preview=request.preview,
        )
        check_video_size(*size)
        if request.paste_back:
            check_video_size(portrait.width // 2 * 2, portrait.height // 2 * 2)

        # The box in that size's aspect. Its content is measured as an image of its own, whose middle the camera looks
        # at.
        box = face_crop if request.crop == "face" else whole_crop
        crop = box(portrait.face_px, portrait.width, portrait.height, size[0] / size[1])
        if crop.padded:
            log.warning(
                "warning: %s ends too near to the face for an image of %dx%d: its border pixels are repeated",
                request.reference,
                *size,
            )
        cropped = crop_portrait(portrait, crop, model)
        self._stage = _Stage(whole=portrait, crop=crop, cropped=cropped, size=size)
        self._paste = PasteBack(portrait.image, crop) if request.paste_back else None
        return cropped

    def load(self) -> dict[str, Any]:
        """Load the pipeline to its device, within the device's memory, and set its sampler."""
        self._pipeline, weights = load_for(self._request, self._found, self._device)
        return weights

    def begin(self, motion: MotionStream, pairing: Pairing, progress: Progress) -> MotionStream:
        """The motion; whole where the memory preset is small, so that the driver's models leave the device first."""
        pipeline = self._loaded
        if pipeline.memory is not None and pipeline.memory.rest:
            with out_of_memory_explained(pipeline.memory, pipeline.denoiser.device, "the motion"):
                motion = MotionStream.of(motion.whole())
        progress("estimate", 0, 1)
        steps, guidance = self._steps_and_guidance
        seconds = say_how_long(
            pipeline,
            self._found,
            size=self._ready.size,
            frames=motion.count,
            fps=pairing.fps,
            steps=steps,
            guidance=guidance,
        )
        self.estimated = {} if seconds is None else {"video, estimated before": seconds}
        return motion

    def frames(self, motion: MotionStream, progress: Progress) -> Iterator[np.ndarray]:
        """Generated images, each as soon as it is final; pasted back where that is asked for."""
        request, stage, renderer = self._request, self._ready, self._renderer
        steps, guidance = self._steps_and_guidance
        settings = VideoSettings(width=stage.size[0], height=stage.size[1], steps=steps, guidance=guidance)
        prepared = renderer.prepare(stage.cropped, settings)
        frames = renderer.render(prepared, motion, seed=request.seed, progress=progress)
        return frames if self._paste is None else map(self._paste, frames)

    @property
    def size(self) -> tuple[int, int]:
        """Size of the images, or of the portrait that they are pasted back into."""
        return self._ready.size if self._paste is None else self._paste.size

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Size of the generated images."""
        return self._ready.size

    @property
    def note(self) -> SyntheticNote | None:
        """What made the video; a part of a photo stays as it was taken where the frames are pasted back."""
        kind = "trainedAlgorithmicMedia" if self._paste is None else "compositeWithTrainedAlgorithmicMedia"
        return SyntheticNote(kind=kind) if self._request.mark_synthetic else None

    def describe(self) -> dict[str, Any]:
        """Size, crop, sampler, guidance, precision and memory."""
        pipeline, crop = self._loaded, self._ready.crop
        return {
            "size": list(self._ready.size),
            "crop": [crop.x0, crop.y0, crop.x1, crop.y1],
            "steps": self._steps_and_guidance[0],
            "guidance": self._steps_and_guidance[1],
            "sampler": type(pipeline.scheduler).__name__,
            "dtype": str(pipeline.denoiser.dtype).removeprefix("torch."),
            "memory_preset": None if pipeline.memory is None else pipeline.memory.gigabytes,
            "synthetic": None if self.note is None else self.note.source_type,
        }


def load_for(
    request: GenerationOptions, place: PipelinePlace, device: str
) -> tuple[TalkingHeadPipeline, dict[str, Any]]:
    """Load a pipeline to its device, within the device's memory, and set its sampler.

    Args:
        request: Weights' settings of the user.
        place: Place of the weights.
        device: Device of the networks: `cpu`, `cuda` or `mps`.

    Returns:
        The pipeline, and the provenance of its weights for the sidecar.

    Raises:
        ValueError: Weights are damaged, or memory runs out; says what to do.
    """
    return _loaded(place, device, request.dtype, request.memory, request.sampler, request.pose_guider_mode)


@kept
def _loaded(
    place: PipelinePlace, device: str, dtype: Any, memory: str, sampler: Any, pose_guider_mode: Any
) -> tuple[TalkingHeadPipeline, dict[str, Any]]:
    """As `load_for`, by what the pipeline depends on."""
    # The memory preset: the one that was asked for, else what fits the device; none on a CPU.
    target = torch.device(device)
    total = device_memory(target)
    preset = None
    if memory != "auto":
        preset = memory_preset(int(memory))
    elif total is not None:
        preset = fitting_preset(total)

    # Loaded on the CPU first: with a preset not every network stays on the device.
    with out_of_memory_explained(preset, target, "the networks"):
        pipeline, weights = load_pipeline(
            place, dtype=named_dtype(dtype), device="cpu", pose_guider_mode=pose_guider_mode
        )
        # Speech models that are bundled with the pipeline are dropped: the driver loads the ones that the request
        # names, with the settings next to their weights.
        pipeline.register_modules(audio2mesh=None, audio2pose=None)
        if preset is not None:
            pipeline.apply_preset(preset.gigabytes, target, named_dtype(dtype))
        else:
            pipeline.to(target)
    if sampler is not None:
        pipeline.scheduler = NoiseSchedule.of(pipeline.scheduler).sampler(sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, weights
