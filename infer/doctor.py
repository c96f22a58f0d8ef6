"""`infer doctor`: report what this machine has, which weights are found, and what a request would cost here."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infer.weights.pipeline_weights import PIPELINE_CLASS, PipelinePlace, find_pipeline
from infer.weights.published_files import PUBLISHED_FPS, PUBLISHED_SIZE
from infer.weights.speech_weights import CLASSES, find_weights
from talkinghead.provenance import library_versions
from talkinghead.runtime.progress import duration
from talkinghead.timebase import FPS

if TYPE_CHECKING:
    import torch

    from infer.estimate import Request
    from talkinghead.models.lmk2video.meta_networks import HollowNetworks

_LIBRARIES = ("talkinghead", "torch", "diffusers", "transformers", "mediapipe", "av", "numpy")
_CONTEXT_FRAMES = 16  # of a pipeline that does not say otherwise


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """Options of `infer doctor`: the request to estimate, its weights, and the device."""

    weights: Path | None = None
    """Weights as for `audio`: a pipeline's folder, or one that holds it next to audio2mesh/ and audio2pose/. Default:
    none, and the published sizes are estimated."""
    width: int | None = None
    """Width of the video in pixels; default: the size that the weights were trained on."""
    height: int | None = None
    """Height of the video in pixels; default: the size that the weights were trained on."""
    seconds: float = 10.0
    """Length of the video in seconds."""
    fps: float | None = None
    """Frame rate of the video; default: the weights' own."""
    steps: int = 25
    """Number of sampling steps."""
    guidance: float = 3.5
    """Guidance scale; 1 or less turns guidance off."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to estimate for."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the networks; default: fp32 on a CPU, else fp16."""

    def check(self) -> None:
        """Check the values of the options; raises `ValueError` when one is out of range."""
        wanted = {"seconds": self.seconds, "steps": self.steps, "fps": self.fps}
        for name, value in (wanted | {"width": self.width, "height": self.height}).items():
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"--{name} is {value}, must be more than 0")
        if not 0 <= self.guidance <= 100:
            raise ValueError(f"--guidance is {self.guidance:g}, must be 0 to 100")


def diagnose(request: DoctorRequest) -> str:
    """Check the machine and the weights, and estimate the request.

    Args:
        request: Options of the command.

    Returns:
        Report with sections `machine`, `weights` and `request`, an entry in each line.

    Raises:
        ValueError: An option is out of range, the networks cannot make the size, or the device is not there. Missing
            weights are no error: the report says so.
    """
    # Options first: a mistake is reported before PyTorch is imported.
    request.check()
    import torch

    from talkinghead.runtime.device import choose_device

    device = choose_device(request.device)
    lines = ["machine", *_machine(device), "weights"]
    place, found = _weights(request.weights)
    lines += [*found, "request", *_request(_case(request, place, device), torch.device(device))]
    return "\n".join(lines)


def _machine(device: str) -> Iterator[str]:
    """Lines about system, libraries and device."""
    import torch

    from talkinghead.pipelines.memory import device_memory

    yield f"  system        {platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"
    yield f"  libraries     {', '.join(f'{name} {version}' for name, version in library_versions(*_LIBRARIES).items())}"
    total = device_memory(torch.device(device))
    name = torch.cuda.get_device_name() if device == "cuda" else device
    yield f"  device        {name}{'' if total is None else f', {_gigabytes(total)}'}"


def _weights(path: Path | None) -> tuple[PipelinePlace | None, list[str]]:
    """Location of the pipeline, None where it is not usable; and lines about all weights, without loading any."""
    if path is None:
        return None, ["  none named    give --weights to check them"]
    lines: list[str] = []
    pipeline: PipelinePlace | None = None
    # What the other commands would raise as errors is a line of the report here.
    try:
        pipeline = find_pipeline(path)
        form = "published files" if pipeline.published else f"{pipeline.origin} weights"
        lines.append(f"  pipeline      {form} in {pipeline.path}, made for {pipeline.size[0]}x{pipeline.size[1]}")
    except ValueError as error:
        lines.append(f"  pipeline      not usable: {error}")
    for kind in CLASSES:
        try:
            place = find_weights(kind, path)
            lines.append(f"  {kind:13} {'published file' if place.is_file else 'weights in'} {place.path}")
        except ValueError as error:
            lines.append(f"  {kind:13} not usable: {error}")
    return pipeline, lines


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Request to estimate, and the networks that would carry it out."""

    networks: HollowNetworks
    """Networks without weights, in `dtype`."""
    asked: Request
    """Requested video, with defaults filled in."""
    compat: bool
    """Whether windows are laid as AniPortrait's program does."""
    dtype: torch.dtype
    """Precision of the networks."""


def _case(request: DoctorRequest, place: PipelinePlace | None, device: str) -> _Case:
    """Case of a request: networks as the pipeline's settings describe them, or of the published sizes."""
    import torch

    from infer.estimate import Request, with_guider
    from talkinghead.models.image.networks import check_image_size
    from talkinghead.models.lmk2video.meta_networks import HollowNetworks
    from talkinghead.models.lmk2video.published import published_pose_guider
    from talkinghead.pipelines.pipeline_folder import read_index
    from talkinghead.runtime.device import named_dtype

    # Networks without weights, and the settings of their pipeline.
    if place is None or place.published is not None:
        # The default mode of published files.
        networks = with_guider(HollowNetworks.published(), published_pose_guider("published"))
        index = {"compat": True, "fps": PUBLISHED_FPS, "context_frames": _CONTEXT_FRAMES}
    else:
        networks, index = HollowNetworks.of_folder(place.path), read_index(place.path, PIPELINE_CLASS)
        networks = with_guider(networks, networks.pose_guider.config)

    # The requested video; options that are not given come from the weights.
    size = PUBLISHED_SIZE if place is None else place.size
    asked = Request(
        width=request.width or size[0],
        height=request.height or size[1],
        seconds=request.seconds,
        fps=request.fps or index.get("fps", float(FPS)),
        steps=request.steps,
        guidance=request.guidance,
        context_frames=index.get("context_frames", _CONTEXT_FRAMES),
    )
    check_image_size(asked.width, asked.height, networks.vae)
    # Default precision as in the memory presets: single on a CPU, half elsewhere.
    dtype = named_dtype(request.dtype) or (torch.float32 if device == "cpu" else torch.float16)
    return _Case(networks=networks.to(dtype), asked=asked, compat=index.get("compat", False), dtype=dtype)


def _request(case: _Case, device: torch.device) -> Iterator[str]:
    """Lines about the requested video: size, operations, time, and memory under each preset."""
    from infer.estimate import device_bytes, layout_of, measured_speed, shape_of
    from talkinghead.models.lmk2video.cost import published_cost, video_cost
    from talkinghead.pipelines.lmk2video.context_windows import published_windows
    from talkinghead.pipelines.memory import PRESETS, device_memory

    # Operations of this project's pipeline, and of AniPortrait's program, whose windows lie differently.
    asked, networks = case.asked, case.networks
    layout = layout_of(asked, networks, compat=case.compat)
    shape = shape_of(asked, layout)
    cost = video_cost(networks, shape)
    windows = tuple(len(window) for window in published_windows(asked.frames))
    theirs = published_cost(networks, dataclasses.replace(shape, windows=windows))
    count, frames = sum(networks.parameters().values()), asked.frames
    yield f"  video         {frames} frames of {asked.width}x{asked.height} at {asked.fps:g} fps, {asked.steps} steps"
    size = _gigabytes(count * case.dtype.itemsize)
    yield f"  networks      {count / 1e6:.1f} million parameters, {size} as {_name(case.dtype)}"
    shares = ", ".join(f"{part} {flops / frames / 1e12:.3g}" for part, flops in cost.flops.items())
    yield f"  operations    {cost.flops_per_frame / 1e12:.3g} TFLOP for each frame ({shares})"
    yield f"                {theirs.flops_per_frame / 1e12:.3g} TFLOP for each frame by AniPortrait's program"

    # Time, from a measurement of the device.
    speed = measured_speed(networks, asked, device, case.dtype)
    lasts = duration(cost.flops_per_frame * frames / speed)
    yield f"  time          about {lasts} ({speed / 1e12:.3g} TFLOP/s, measured on a part of the work just now)"

    # Memory under each preset, compared with the preset's name and with this device.
    total = device_memory(device)
    for gigabytes, preset in PRESETS.items():
        needed = device_bytes(networks, asked, layout, preset, cost)
        fits = "fits" if needed <= gigabytes * 2**30 else "does not fit"
        here = "" if total is None else (", fits this device" if needed <= total else ", does not fit this device")
        yield f"  --memory {gigabytes:<4} about {_gigabytes(needed)} as {_name(preset.dtype)}: {fits}{here}"


def _gigabytes(count: float) -> str:
    """Bytes in units of 2**30, as text."""
    return f"{count / 2**30:.2f} GB"


def _name(dtype: torch.dtype) -> str:
    """Name of a precision, such as `float16`."""
    return str(dtype).removeprefix("torch.")
