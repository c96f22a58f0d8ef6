"""How long a video will take, said before the first prediction is made."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from infer.progress import duration
from infer.weights.pipeline_weights import PipelinePlace

if TYPE_CHECKING:
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline

log = logging.getLogger(__name__)

LARGE = 50_000_000
"""Parameters of a denoiser whose first prediction is worth an estimate before it; those of smaller ones come at once,
and tell it better."""


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
        pipeline: On its device.
        place: Where it is from.
        size: Of the pictures, pixels.
        frames: Of the video.
        fps: Of the video.
        steps: Of the sampler.
        guidance: Scale.

    Returns:
        Seconds; None where the networks are so small that the first predictions will tell.
    """
    if sum(value.numel() for value in pipeline.denoiser.parameters()) < LARGE:
        return None
    from infer.estimate import Request, layout_of, measured_speed, shape_of, with_guider
    from talkinghead.models.cost import video_cost
    from talkinghead.models.hollow_networks import HollowNetworks

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
