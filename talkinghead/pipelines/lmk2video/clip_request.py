"""Requests to a talking-head pipeline: one portrait, one moving face."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from talkinghead.media.image_size import resize_images
from talkinghead.pipelines.lmk2video.frames import OutputType, check_output_type
from talkinghead.pipelines.lmk2video.moving_landmarks import MovingLandmarks, check_landmarks
from talkinghead.runtime.progress import ProgressCallback

_Fields = ParamSpec("_Fields")
_Owner = TypeVar("_Owner")
_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]
"""Type of `ClipRequest.callback_on_step_end`: pipeline, step, timestep, tensors → changed tensors, or None."""
CALLBACK_TENSORS = ("latents",)

_WHOLE_NUMBERS: dict[str, int | None] = {
    "num_inference_steps": 1,
    "seed": None,
    "width": 1,
    "height": 1,
    "context_frames": 1,
    "context_overlap": 0,
    "decode_chunk_size": 1,
}
"""Whole-number arguments, with the smallest value of each; None: any value."""
_MAY_BE_NONE = ("num_inference_steps", "width", "height", "context_frames", "context_overlap", "decode_chunk_size")


@dataclass(frozen=True)
class ClipRequest:
    """Arguments of `TalkingHeadPipeline.stream` and of a call, checked as far as is possible without the networks.

    Raises:
        ValueError: An invalid value; says which, and what is needed.
    """

    reference: PIL.Image.Image | np.ndarray
    """Portrait, an image or RGB uint8 `[H, W, 3]`; it is resized to the size of the frames."""
    landmarks: np.ndarray | MovingLandmarks
    """Landmarks of the driving face in each frame, float `[F, ≥468, ≥2]`, x/width and y/height; or such as still come
    from a driver, for one video."""
    _: KW_ONLY
    reference_landmarks: np.ndarray | None = None
    """Landmarks of the portrait's own face, float `[≥468, ≥2]`; required by a PoseGuider that attends to them."""
    width: int | None = None
    """Width of the frames in pixels; None: the networks' training width, or the portrait's."""
    height: int | None = None
    """Height of the frames in pixels; None: the networks' training height, or the portrait's."""
    num_inference_steps: int | None = None
    """Number of the sampler's steps; None: 25, or 4 with distilled weights."""
    guidance_scale: float | None = None
    """Guidance scale, the factor of the portrait's influence; up to 1: no guidance, half the cost. None: 3.5, or 1 with
    distilled weights, which have learnt a guidance and take no other."""
    seed: int = 0
    """Seed of the noise. A frame's noise is a function of seed and frame, on every device, for every length."""
    generator: torch.Generator | None = None
    """Generator from which the seed is drawn, instead of `seed`."""
    latents: Tensor | None = None
    """First noise, `[F, C, h, w]` of unit variance; None: drawn by the seed."""
    context_frames: int | None = None
    """Number of frames of a window, which the motion modules take in at once; None: as in their training."""
    context_overlap: int | None = None
    """Number of frames that neighbouring windows share; None: a quarter of a window. Where frames do not interact,
    nothing is shared."""
    decode_chunk_size: int | None = None
    """Number of frames decoded at once; None: the memory preset's, or 4."""
    callback_on_step_end: Callback | None = None
    """Function called as `callback(pipeline, step, timestep, tensors)` after a step of some frames; may return changed
    tensors. Frames do not do their steps all at the same time: `pipeline.current_frames` says which these are, and
    `tensors["latents"]` has their latents, `[n, C, h, w]`."""
    callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS
    """Names of the tensors that the callback gets; a `PipelineCallback` of `diffusers` names them itself."""
    progress: ProgressCallback | None = None
    """Progress callback, which gets the stage "video", the number of predictions done, and their total number."""

    def __post_init__(self) -> None:
        _check_reference(self.reference)
        if not isinstance(self.landmarks, MovingLandmarks):
            check_landmarks("landmarks", self.landmarks, 3)
        if self.reference_landmarks is not None:
            check_landmarks("reference_landmarks", self.reference_landmarks, 2)
        # NumPy's integers become Python's: noise is keyed by the seed's text and type. The dataclass is frozen, hence
        # `object.__setattr__`.
        for name, least in _WHOLE_NUMBERS.items():
            object.__setattr__(self, name, _whole_number(name, getattr(self, name), least))
        scale = 1.0 if self.guidance_scale is None else self.guidance_scale
        if not isinstance(scale, int | float | np.number) or not np.isfinite(scale):
            raise ValueError(f"guidance_scale must be a number, not {scale!r}")
        self._check_noise()
        if isinstance(self.callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            object.__setattr__(self, "callback_on_step_end_tensor_inputs", self.callback_on_step_end.tensor_inputs)
        odd = [name for name in self.callback_on_step_end_tensor_inputs if name not in CALLBACK_TENSORS]
        if odd:
            raise ValueError(f"callbacks can be given {', '.join(CALLBACK_TENSORS)}, not {odd[0]!r}")

    def _check_noise(self) -> None:
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            about = type(self.generator).__name__
            raise ValueError(
                f"generator must be one torch.Generator, which draws the seed of all frames, not a {about}"
            )
        if self.latents is None:
            return
        if not isinstance(self.latents, Tensor):
            raise ValueError(f"latents must be a tensor, not {type(self.latents).__name__}")
        if not torch.isfinite(self.latents).all():
            raise ValueError("latents hold values that are not finite")

    @property
    def num_frames(self) -> int:
        """Number F of frames of the video."""
        return len(self.landmarks)

    def noise_seed(self) -> int:
        """Seed of the noise: `seed`, or a number drawn from `generator`. Each call draws another one."""
        # Noise is keyed by seed and frame, so one number from the generator is enough.
        if self.generator is None:
            return self.seed
        return int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))

    def image(self, width: int, height: int) -> Tensor:
        """Portrait resized to `width` x `height` pixels, uint8 `[1, 3, H, W]`; the aspect is not kept."""
        image = self.reference
        if isinstance(image, PIL.Image.Image):
            image = np.asarray(image.convert("RGB"))
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return resize_images(pixels, width, height)


@dataclass(frozen=True, kw_only=True)
class VideoRequest(ClipRequest):
    """Arguments of a call of `TalkingHeadPipeline`: a clip, and the form in which its frames are returned.

    Raises:
        ValueError: An invalid value; says which, and what is needed.
    """

    output_type: OutputType = "pil"
    """Form of the frames, see `TalkingHeadOutput.frames`."""
    return_dict: bool = True
    """Whether to return a `TalkingHeadOutput` rather than a tuple of the frames."""

    def __post_init__(self) -> None:
        check_output_type(self.output_type)
        super().__post_init__()


def takes(
    request: Callable[_Fields, _Request],
) -> Callable[[Callable[[_Owner, _Request], _Result]], Callable[Concatenate[_Owner, _Fields], _Result]]:
    """Decorator with which a method that takes a request is called with the request's fields as arguments.

    Args:
        request: Class of the request. Its fields, types and defaults become the method's arguments, for type checkers
            and for `help`.
    """

    def decorate(method: Callable[[_Owner, _Request], _Result]) -> Callable[Concatenate[_Owner, _Fields], _Result]:
        @functools.wraps(method)
        def call(owner: _Owner, /, *args: _Fields.args, **kwargs: _Fields.kwargs) -> _Result:
            return method(owner, request(*args, **kwargs))

        # `help` and `inspect` show `__signature__`: `self`, then the fields of the request.
        own = inspect.signature(method)
        fields = inspect.signature(request).parameters.values()
        signature = own.replace(parameters=[next(iter(own.parameters.values())), *fields])
        call.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


def _whole_number(name: str, value: Any, least: int | None) -> int | None:
    """Argument as Python's `int`, or None where it may be left out."""
    if value is None and name in _MAY_BE_NONE:
        return None
    given: Any = value  # may be None, which is refused like any other value that is no whole number
    try:
        number = operator.index(given)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _check_reference(image: PIL.Image.Image | np.ndarray) -> None:
    if isinstance(image, PIL.Image.Image):
        return
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        about = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"reference must be a PIL image or RGB uint8 [H, W, 3], not {about}")
    if not image.size:
        raise ValueError(f"reference has no pixels: {list(image.shape)}")
