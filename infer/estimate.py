"""What a video will cost: operations, memory under each preset, and time.

`infer doctor` asks before anything is loaded; `infer audio` and `infer video` say it before the long part begins
(`say_how_long`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from infer.weights.pipeline_weights import PipelinePlace
from talkinghead.models.image.networks import latent_channels, latent_scale
from talkinghead.models.lmk2video.cost import VideoCost, VideoShape, video_cost
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.meter import measure_cost
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, lay_windows, most_at_work, usual_overlap
from talkinghead.pipelines.memory import LOOK_ONCE, MemoryPreset
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.runtime.progress import duration

log = logging.getLogger(__name__)

LARGE = 50_000_000
"""Parameters of a denoiser whose first prediction is worth an estimate before it; those of smaller ones come at once,
and tell it better."""

_PROBE_SECONDS = 0.5
_CPU_SIDE = 32
"""Latents of what is measured on a CPU: with fewer, reading weights takes longer than computing."""
_SPARE = 1.15
"""Allocators hold more than tensors need, and kernels want workspaces."""
_RUNTIME_BYTES = 500 << 20
"""What a GPU's libraries take."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The video that is asked for."""

    width: int
    height: int
    seconds: float
    fps: float
    steps: int
    guidance: float
    context_frames: int = 16
    """Frames of a window; the pipeline's settings have it."""

    @property
    def frames(self) -> int:
        """Frames of the video, at least one."""
        return max(1, round(self.seconds * self.fps))


def with_guider(networks: HollowNetworks, config: Mapping[str, Any]) -> HollowNetworks:
    """The networks with the PoseGuider of a pipeline at hand: its way to normalise decides how often it is asked.

    Args:
        networks: Networks, which stay as they are.
        config: Configuration of that PoseGuider.
    """
    mode = config["normalisation"]
    # What takes the statistics of the frames at hand cannot be counted on one small frame; running ones cost the same.
    counted = mode if mode == "frame" else "running"
    with torch.device("meta"):
        guider: Any = PoseGuider.from_config({**config, "normalisation": counted})
    guider.normalisation = mode
    return dataclasses.replace(networks, pose_guider=guider.to(networks.denoiser.dtype).eval())


def layout_of(request: Request, networks: HollowNetworks, *, compat: bool) -> WindowLayout:
    """The windows that the pipeline will lay."""
    size = request.context_frames
    return lay_windows(
        request.frames,
        size,
        usual_overlap(size),
        closed=compat,
        independent=networks.denoiser.max_frames is None and networks.pose_guider.frames_are_independent,
    )


def shape_of(request: Request, layout: WindowLayout) -> VideoShape:
    """The request for the cost model; one frame decoded at once."""
    return VideoShape(
        width=request.width,
        height=request.height,
        frames=request.frames,
        windows=tuple(len(window) for window in layout.windows),
        steps=request.steps,
        guided=request.guidance > 1,
        decode_chunk=1,
    )


def device_bytes(
    networks: HollowNetworks, request: Request, layout: WindowLayout, preset: MemoryPreset, cost: VideoCost
) -> int:
    """Most memory on the device under a preset, with what allocators and libraries take next to it, bytes.

    Args:
        networks: Networks in any precision.
        request: What is asked for.
        layout: Its windows.
        preset: The preset that is supposed.
        cost: Cost of the request's shape, counted with these networks and one frame decoded at once.
    """
    size = preset.dtype.itemsize
    peak = {part: count * size // networks.denoiser.dtype.itemsize for part, count in cost.peak_bytes.items()}
    weights = {name: size * count for name, count in networks.parameters().items()}
    resting = {name: weights.pop(name) for name in LOOK_ONCE} if preset.rest else {}
    resident = sum(weights.values())
    looking = max(resting.values(), default=0) + peak["reference"]
    working = _kept_bytes(networks, request, layout, preset)
    working += max(peak["pose"], peak["denoiser"], peak["decoding"] * preset.decode_chunk_size)
    return round((resident + max(looking, working)) * _SPARE) + _RUNTIME_BYTES


def _kept_bytes(networks: HollowNetworks, request: Request, layout: WindowLayout, preset: MemoryPreset) -> int:
    """What waits from step to step: pose features and begun frames of all that is at work, and the reference."""
    scale = latent_scale(networks.vae)
    height, width = request.height // scale, request.width // scale
    widths = networks.denoiser.config["block_out_channels"]
    at_work, in_windows = most_at_work(layout, request.steps)
    posed = at_work if networks.pose_guider.frames_are_independent else in_windows
    position = widths[0] + sum(channels / 4 ** (level + 1) for level, channels in enumerate([*widths[1:], 0]))
    pose = posed * position * height * width if preset.keep_pose == "device" else 0
    overlapping = sum(len(block) for block in layout.blocks if len(block.windows) > 1) / request.frames
    halves = 2 if request.guidance > 1 else 1
    begun = at_work * (overlapping if preset.share else 0) * (1 + halves) * widths[0] * height * width
    with torch.no_grad():
        latents = torch.empty(1, latent_channels(networks.vae), height, width, device="meta").to(
            networks.denoiser.dtype
        )
        token = latents.new_empty(1, 1, networks.denoiser.config["cross_attention_dim"])
        reference = 2 * sum(feature.numel() for feature in networks.reference_net(latents, token).values())
    return round(preset.dtype.itemsize * (pose + begun + reference))


def measured_speed(networks: HollowNetworks, request: Request, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of this device on the denoiser's first level, with first weights.

    That level has the largest share of the work, and all kinds of it: convolutions, attention over positions and
    frames, and what stands between them. On a CPU one frame of at most 256 pixels is measured: a window of large ones
    would take minutes.

    Args:
        networks: Networks whose sizes are taken.
        request: What is asked for; its size is taken.
        device: Device to measure; takes a second or two, some ten on a CPU with networks of Stable Diffusion's size.
        dtype: Precision of the networks.
    """
    config = dict(networks.denoiser.config)
    channels = config["block_out_channels"][0]
    few = {"block_out_channels": (channels,), "attention_levels": (True,), "layers_per_block": 1}
    slow = device.type == "cpu"
    scale, largest = latent_scale(networks.vae), _CPU_SIDE if slow else max(request.height, request.width)
    height, width = (min(side // scale, largest) for side in (request.height, request.width))
    shape = (1, 1 if slow else request.context_frames, config["in_channels"], height, width)
    with torch.device("meta"):
        hollow: Any = Denoiser.from_config({**config, **few})
        latents, token = torch.empty(shape), torch.empty(1, 1, config["cross_attention_dim"])
    hollow.eval()
    flops = measure_cost(lambda: hollow(latents, 0, token)).flops
    probe: Any = Denoiser.from_config({**config, **few})
    probe.to(device, dtype).eval()
    given = torch.zeros(shape, device=device, dtype=dtype), 0, torch.zeros(token.shape, device=device, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        probe(*given)  # kernels are chosen and memory is taken the first time
        _wait(device)
        began = time.perf_counter()
        while time.perf_counter() - began < _PROBE_SECONDS:
            _wait(device)
            start = time.perf_counter()
            probe(*given)
            _wait(device)
            best = min(best, time.perf_counter() - start)
    return flops / best


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        module.synchronize()


def say_how_long(
    pipeline: TalkingHeadPipeline,
    place: PipelinePlace,
    *,
    size: tuple[int, int],
    frames: int,
    fps: float,
    steps: int,
    guidance: float,
) -> float | None:
    """Measure the device for a second or two, and say what the video will take.

    Args:
        pipeline: The pipeline, on its device.
        place: Where it is from.
        size: Width and height of the video, pixels.
        frames: Frames of the video.
        fps: Its frame rate.
        steps: Steps of the sampler.
        guidance: Guidance scale.

    Returns:
        Seconds; None where the networks are so small that the first predictions will tell.
    """
    if sum(value.numel() for value in pipeline.denoiser.parameters()) < LARGE:
        return None

    # The networks without their weights, and what is asked of them.
    networks = HollowNetworks.published() if place.published else HollowNetworks.of_folder(place.path)
    networks = with_guider(networks, pipeline.pose_guider.config)
    request = Request(
        width=size[0],
        height=size[1],
        seconds=frames / fps,
        fps=fps,
        steps=steps,
        guidance=guidance,
        context_frames=pipeline.config["context_frames"],
    )
    shape = shape_of(request, layout_of(request, networks, compat=pipeline.config["compat"]))
    if pipeline.memory is not None:
        shape = dataclasses.replace(shape, share=pipeline.memory.share, keep_pose=pipeline.memory.keep_pose != "none")

    # Operations, over what the device does per second.
    flops = sum(video_cost(networks, shape).flops.values())
    speed = measured_speed(networks, request, pipeline.denoiser.device, pipeline.denoiser.dtype)
    seconds = flops / speed
    log.info(
        "%d frames of %dx%d in %d steps: about %s (%.0f TFLOP; %s did %.2f TFLOP/s just now)",
        frames,
        *size,
        steps,
        duration(seconds),
        flops / 1e12,
        pipeline.denoiser.device,
        speed / 1e12,
    )
    return seconds
