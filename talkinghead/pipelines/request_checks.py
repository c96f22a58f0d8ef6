"""Whether a pipeline's networks and scheduler can do what they are asked for, and in which windows they do it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from talkinghead.models.noise_schedule import COMPAT_INFER, PAPER, NoiseSchedule
from talkinghead.models.picture_encoder import check_picture_size, latent_channels
from talkinghead.pipelines.clip_request import ClipRequest
from talkinghead.pipelines.context_windows import WindowLayout, lay_windows, usual_overlap

if TYPE_CHECKING:
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline


_OTHERS = "Its noise is not what they were trained on; take DDIM, DPM-Solver++ multistep, Euler or UniPC"


def check_request(request: ClipRequest, pipeline: TalkingHeadPipeline, width: int, height: int) -> None:
    """Refuse what the networks cannot do.

    Args:
        request: Checked for itself already.
        pipeline: Whose networks.
        width: Of the frames, pixels.
        height: Likewise.

    Raises:
        ValueError: Says what does not fit and what would.
    """
    check_picture_size(width, height, pipeline.vae)
    _check_windows(request, pipeline)
    check_scheduler(pipeline.scheduler, compat=pipeline.config["compat"])
    known = pipeline.scheduler.config["num_train_timesteps"]
    if request.num_inference_steps > known:
        raise ValueError(f"num_inference_steps must be at most {known}, not {request.num_inference_steps}")
    if pipeline.pose_guider.config["reference_attention"] and request.reference_landmarks is None:
        raise ValueError("this PoseGuider attends to the portrait's own landmarks: give reference_landmarks too")
    if request.latents is not None:
        scale = pipeline.vae_scale_factor
        wanted = (request.num_frames, latent_channels(pipeline.vae), height // scale, width // scale)
        if tuple(request.latents.shape) != wanted:
            raise ValueError(f"latents must be {list(wanted)}, not {list(request.latents.shape)}")


def check_scheduler(scheduler: SchedulerMixin, *, compat: bool) -> None:
    """Refuse samplers of another noise schedule than the networks were trained on.

    Args:
        scheduler: A `diffusers` sampler.
        compat: AniPortrait's weights, which are sampled on another schedule than they were trained on; either fits.

    Raises:
        ValueError: It does not fit; says in which settings.
    """
    _check_settings(scheduler)
    schedule = PAPER
    try:
        PAPER.check(scheduler)
    except ValueError:
        if not compat:
            raise
        schedule = COMPAT_INFER
        schedule.check(scheduler)
    shares = getattr(scheduler, "alphas_cumprod", None)
    if shares is None or not torch.allclose(shares.cpu().float(), schedule.alphas_cumprod, rtol=1e-3, atol=1e-6):
        raise ValueError(f"{type(scheduler).__name__} does not fit the networks. {_OTHERS}")


def _check_settings(scheduler: Any) -> None:
    """Refuse samplers that have not all settings of a noise schedule: `from_config` gives them a note of the rest."""
    if not isinstance(scheduler, SchedulerMixin):
        raise ValueError(f"the scheduler must be one of diffusers', not {type(scheduler).__name__}")
    known = inspect.signature(type(scheduler)).parameters
    missing = [name for name in NoiseSchedule.__dataclass_fields__ if name not in known]
    if missing:
        raise ValueError(f"{type(scheduler).__name__} does not fit: it has no setting {missing[0]}. {_OTHERS}")


def context(request: ClipRequest, pipeline: TalkingHeadPipeline) -> tuple[int, int]:
    """Frames of a window, and frames that neighbours share: what the networks have learnt, where nothing is asked."""
    size = pipeline.config["context_frames"] if request.context_frames is None else request.context_frames
    return size, usual_overlap(size) if request.context_overlap is None else request.context_overlap


def request_windows(request: ClipRequest, pipeline: TalkingHeadPipeline) -> WindowLayout:
    """The windows over the video that is asked for."""
    return lay_windows(
        request.num_frames,
        *context(request, pipeline),
        closed=pipeline.config["compat"],
        independent=pipeline.denoiser.max_frames is None and pipeline.pose_guider.frames_are_independent,
    )


def _check_windows(request: ClipRequest, pipeline: TalkingHeadPipeline) -> None:
    size, overlap = context(request, pipeline)
    if not 0 <= overlap < size:
        raise ValueError(f"context_overlap must be at least 0 and less than context_frames {size}, not {overlap}")
    longest = pipeline.denoiser.max_frames
    if longest is not None and min(size, request.num_frames) > longest:
        raise ValueError(f"context_frames must be at most {longest}, which the motion modules know, not {size}")
