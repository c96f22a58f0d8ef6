"""Estimates of what a video costs: operations, memory under each preset, and time.

Operations and memory are counted on networks without weights (`HollowNetworks`); time is operations divided by the
speed of the device, which is measured on a small part of the work. `infer doctor` reports all of it without loading
weights; `infer audio` and `infer video` report the time before the long phase begins (`say_how_long`).
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
"""Number of parameters from which on a denoiser's time is estimated; smaller ones show it soon by their progress."""

# Predictions are repeated for this long, in seconds, and the fastest counts: others were disturbed by other programs.
_PROBE_SECONDS = 0.5
_CPU_SIDE = 32
"""Longest side of the latents measured on a CPU; in smaller ones, reading weights takes longer than computing."""
_SPARE = 1.15
"""Factor on the memory of tensors: allocators hold more than tensors need, and kernels use workspaces."""
_RUNTIME_BYTES = 500 << 20
"""Memory that a GPU's libraries take, bytes."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Properties of the requested video."""

    width: int
    """Width of the images in pixels."""
    height: int
    """Height of the images in pixels."""
    seconds: float
    """Length of the video in seconds."""
    fps: float
    """Frames per second."""
    steps: int
    """Number of sampling steps."""
    guidance: float
    """Guidance scale; 1 or less means no guidance."""
    context_frames: int = 16
    """Number of frames of a window, from the pipeline's settings."""

    @property
    def frames(self) -> int:
        """Number of frames of the video, at least one."""
        return max(1, round(self.seconds * self.fps))


def with_guider(networks: HollowNetworks, config: Mapping[str, Any]) -> HollowNetworks:
    """Networks with the PoseGuider of another configuration, whose normalisation decides how often it is computed.

    Args:
        networks: Networks; they are not changed.
        config: Configuration of the PoseGuider.
    """
    mode = config["normalisation"]
    # Normalisation over a window's frames cannot be counted on one small frame; running statistics cost the same.
    counted = mode if mode == "frame" else "running"
    with torch.device("meta"):
        guider: Any = PoseGuider.from_config({**config, "normalisation": counted})
    # With the true mode again, `frames_are_independent` decides whether windows can share pose features.
    guider.normalisation = mode
    return dataclasses.replace(networks, pose_guider=guider.to(networks.denoiser.dtype).eval())


def layout_of(request: Request, networks: HollowNetworks, *, compat: bool) -> WindowLayout:
    """Windows as the pipeline will lay them.

    Args:
        request: The requested video.
        networks: Networks; windows overlap unless neither the denoiser nor the PoseGuider relates frames.
        compat: Whether windows are laid as AniPortrait's program does.
    """
    size = request.context_frames
    return lay_windows(
        request.frames,
        size,
        usual_overlap(size),
        closed=compat,
        independent=networks.denoiser.max_frames is None and networks.pose_guider.frames_are_independent,
    )


def shape_of(request: Request, layout: WindowLayout) -> VideoShape:
    """Properties of the request on which its cost depends; frames are decoded one at a time."""
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
    """Peak memory on the device under a preset in bytes, including what allocators and libraries take.

    Args:
        networks: Networks in any precision.
        request: The requested video.
        layout: Windows of the video.
        preset: Preset to estimate for.
        cost: Cost of the request's shape, counted with these networks and one frame decoded at a time.
    """
    # Counts in the networks' precision become bytes in the preset's.
    size = preset.dtype.itemsize
    peak = {part: count * size // networks.denoiser.dtype.itemsize for part, count in cost.peak_bytes.items()}

    # Weights: a network that rests is on the device only while it sees the portrait.
    weights = {name: size * count for name, count in networks.parameters().items()}
    resting = {name: weights.pop(name) for name in LOOK_ONCE} if preset.rest else {}
    resident = sum(weights.values())

    # The reference is computed before any frame, and parts of a step one after the other: the largest decides.
    looking = max(resting.values(), default=0) + peak["reference"]
    working = _kept_bytes(networks, request, layout, preset)
    working += max(peak["pose"], peak["denoiser"], peak["decoding"] * preset.decode_chunk_size)
    return round((resident + max(looking, working)) * _SPARE) + _RUNTIME_BYTES


def _kept_bytes(networks: HollowNetworks, request: Request, layout: WindowLayout, preset: MemoryPreset) -> int:
    """Bytes that stay on the device from step to step: pose features, shared first parts of a step, and the reference.

    Only frames in progress count: those that have begun and are not finished (`most_at_work`).
    """
    scale = latent_scale(networks.vae)
    height, width = request.height // scale, request.width // scale
    widths = networks.denoiser.config["block_out_channels"]

    # Pose features: once for each frame, or once for each window over it. Every scale has a quarter of the positions of
    # the one before. At the published sizes this is a fifth more than they take.
    at_work, in_windows = most_at_work(layout, request.steps)
    posed = at_work if networks.pose_guider.frames_are_independent else in_windows
    position = widths[0] + sum(channels / 4 ** (level + 1) for level, channels in enumerate([*widths[1:], 0]))
    pose = posed * position * height * width if preset.keep_pose == "device" else 0

    # Shared first parts of a step (`Denoiser.begin`), kept for frames under several windows: one skip state for all
    # conditions, and one hidden state for each.
    overlapping = sum(len(block) for block in layout.blocks if len(block.windows) > 1) / request.frames
    halves = 2 if request.guidance > 1 else 1
    begun = at_work * (overlapping if preset.share else 0) * (1 + halves) * widths[0] * height * width

    # The reference: keys and values of every feature.
    with torch.no_grad():
        latents = torch.empty(1, latent_channels(networks.vae), height, width, device="meta").to(
            networks.denoiser.dtype
        )
        token = latents.new_empty(1, 1, networks.denoiser.config["cross_attention_dim"])
        reference = 2 * sum(feature.numel() for feature in networks.reference_net(latents, token).values())
    return round(preset.dtype.itemsize * (pose + begun + reference))


def measured_speed(networks: HollowNetworks, request: Request, device: torch.device, dtype: torch.dtype) -> float:
    """Measured speed of a device on the denoiser's first level, with untrained weights, in operations per second.

    That level has the largest share of the work, and all kinds of it: convolutions, attention over positions and
    frames, and elementwise layers. On a CPU one frame with latents of at most 32x32 is measured: a window of large
    frames would take minutes. Takes a second or two, on a CPU about ten with networks of Stable Diffusion's size.

    Args:
        networks: Networks whose sizes the measured one has.
        request: The requested video, which gives the size of the images.
        device: Device to measure.
        dtype: Precision of the networks.
    """
    # A denoiser of one level with one layer, and latents [1, F, C, h, w] of one window.
    config = dict(networks.denoiser.config)
    channels = config["block_out_channels"][0]
    few = {"block_out_channels": (channels,), "attention_levels": (True,), "layers_per_block": 1}
    slow = device.type == "cpu"
    scale, largest = latent_scale(networks.vae), _CPU_SIDE if slow else max(request.height, request.width)
    height, width = (min(side // scale, largest) for side in (request.height, request.width))
    shape = (1, 1 if slow else request.context_frames, config["in_channels"], height, width)

    # Its operations, counted without computing anything.
    with torch.device("meta"):
        hollow: Any = Denoiser.from_config({**config, **few})
        latents, token = torch.empty(shape), torch.empty(1, 1, config["cross_attention_dim"])
    hollow.eval()
    flops = measure_cost(lambda: hollow(latents, 0, token)).flops

    # Its time on the device: the best of several calls.
    probe: Any = Denoiser.from_config({**config, **few})
    probe.to(device, dtype).eval()
    given = torch.zeros(shape, device=device, dtype=dtype), 0, torch.zeros(token.shape, device=device, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        probe(*given)  # kernels are chosen and memory is taken the first time
        _wait(device)  # GPUs compute asynchronously: a call returns before its result is there
        began = time.perf_counter()
        while time.perf_counter() - began < _PROBE_SECONDS:
            _wait(device)
            start = time.perf_counter()
            probe(*given)
            _wait(device)
            best = min(best, time.perf_counter() - start)
    return flops / best


def _wait(device: torch.device) -> None:
    """Wait until the device has done all work that it was given."""
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
    """Measure the device for a second or two, and report how long the video will take.

    Args:
        pipeline: Pipeline on its device.
        place: Location of the pipeline's weights.
        size: Width and height of the images in pixels.
        frames: Number of frames of the video.
        fps: Frames per second.
        steps: Number of sampling steps.
        guidance: Guidance scale.

    Returns:
        Seconds; None for networks so small that an estimate would hardly be sooner than the first predictions.
    """
    if sum(value.numel() for value in pipeline.denoiser.parameters()) < LARGE:
        return None

    # The networks without their weights, and the shape of the work under the pipeline's memory preset.
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

    # Time: operations, divided by operations per second.
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
