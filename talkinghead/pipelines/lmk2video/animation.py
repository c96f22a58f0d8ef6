"""One video of a talking-head pipeline: look at the portrait, sample in windows, decode what is finished."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from talkinghead.models.image.networks import ImageNetworks, Vae, check_image_size, latent_channels
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import GUIDANCE_SCALE, PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.noise_schedule import COMPAT_INFER, PAPER, NoiseSchedule
from talkinghead.pipelines.lmk2video.clip_request import ClipRequest
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, lay_windows, usual_overlap
from talkinghead.pipelines.lmk2video.frames import decode
from talkinghead.pipelines.lmk2video.sampling import (
    ClipSampling,
    Finished,
    Noise,
    StepDone,
    given_noise,
    keyed_generators,
    keyed_noise,
)
from talkinghead.pipelines.lmk2video.velocity import (
    GuidedVelocity,
    PoseFeatures,
    ReferenceConditions,
    as_input,
    drawn,
)
from talkinghead.pipelines.memory import MemoryPreset, at_work, awake, out_of_memory_explained


class AnimationPipeline(Protocol):
    """What an animation needs of its pipeline (`talking_head.TalkingHeadPipeline`): networks, settings, switches."""

    vae: Vae
    image_encoder: Any
    reference_net: ReferenceNet
    denoiser: Denoiser
    pose_guider: PoseGuider
    scheduler: Any
    config: Any
    vae_scale_factor: int
    memory: MemoryPreset | None
    progress_bar: Any
    """Makes a bar; its type is lost in a decorator of `diffusers`."""
    current_frames: range
    """In a callback: the frames whose latents it is given."""

    @property
    def interrupt(self) -> bool:
        """Whether no further frames shall come."""
        ...

    @property
    def compute_device(self) -> torch.device:
        """Device of the computation, also with weights that rest elsewhere."""
        ...

    def maybe_free_model_hooks(self) -> None:
        """Let `diffusers` offload what it has put on the device."""
        ...


_OTHERS = "Its noise is not what they were trained on; take DDIM, DPM-Solver++ multistep, Euler or UniPC"


def check_request(request: ClipRequest, pipeline: AnimationPipeline, width: int, height: int) -> None:
    """Refuse what the networks cannot do.

    Args:
        request: Checked for itself already.
        pipeline: Whose networks.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.

    Raises:
        ValueError: Says what does not fit and what would.
    """
    check_image_size(width, height, pipeline.vae)
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


def context(request: ClipRequest, pipeline: AnimationPipeline) -> tuple[int, int]:
    """Frames of a window, and frames that neighbours share: what the networks have learnt, where nothing is asked."""
    size = pipeline.config["context_frames"] if request.context_frames is None else request.context_frames
    return size, usual_overlap(size) if request.context_overlap is None else request.context_overlap


def request_windows(request: ClipRequest, pipeline: AnimationPipeline) -> WindowLayout:
    """The windows over the video that is asked for."""
    return lay_windows(
        request.num_frames,
        *context(request, pipeline),
        closed=pipeline.config["compat"],
        independent=pipeline.denoiser.max_frames is None and pipeline.pose_guider.frames_are_independent,
    )


def _check_windows(request: ClipRequest, pipeline: AnimationPipeline) -> None:
    size, overlap = context(request, pipeline)
    if not 0 <= overlap < size:
        raise ValueError(f"context_overlap must be at least 0 and less than context_frames {size}, not {overlap}")
    longest = pipeline.denoiser.max_frames
    if longest is not None and min(size, request.num_frames) > longest:
        raise ValueError(f"context_frames must be at most {longest}, which the motion modules know, not {size}")


_DECODE_CHUNK = 4
"""Frames decoded at once without a memory preset."""


class Animation:
    """One video. A pipeline can make several at once, but for its `interrupt` and `current_frames`: those are one.

    Args:
        pipeline: Its networks are put in evaluation mode.
        request: Checked.
        size: Width and height of the frames, pixels.
    """

    def __init__(self, pipeline: AnimationPipeline, request: ClipRequest, size: tuple[int, int]) -> None:
        self._pipeline = pipeline
        self._request = request
        self._width, self._height = size
        scale = pipeline.vae_scale_factor
        self._latent_size = (self._height // scale, self._width // scale)
        self._layout = request_windows(request, pipeline)
        self._images = ImageNetworks(pipeline.vae, pipeline.image_encoder)
        for network in (pipeline.reference_net, pipeline.denoiser, pipeline.pose_guider):
            network.eval()

    @torch.no_grad()
    def parts(self, *, latent: bool) -> Iterator[Tensor]:
        """The video, in order, as it is finished.

        Args:
            latent: Latents, float32 `[n, C, h, w]`; otherwise decoded frames, float32 `[n, 3, H, W]` in [0, 1]. On the
                CPU both.

        Raises:
            ValueError: Memory ran out; says what to do.
        """
        pipeline, memory = self._pipeline, self._pipeline.memory
        chunk = self._request.decode_chunk_size or (memory.decode_chunk_size if memory else _DECODE_CHUNK)
        with out_of_memory_explained(memory, self._device, f"frames of {self._width}x{self._height} pixels"):
            for finished in self._finished():
                if latent:
                    yield finished.latents.cpu()
                else:
                    awake(pipeline.vae)
                    yield from decode(self._images, finished.latents, chunk)
        pipeline.maybe_free_model_hooks()

    def frame_shape(self, *, latent: bool) -> tuple[int, int, int]:
        """(C, h, w) of a frame's latents, or of its image."""
        if latent:
            return latent_channels(self._pipeline.vae), *self._latent_size
        return 3, self._height, self._width

    @property
    def _device(self) -> torch.device:
        return self._pipeline.compute_device

    def _finished(self) -> Iterator[Finished]:
        request, pipeline = self._request, self._pipeline

        # What stays the same for the whole video: the portrait as the denoiser sees it, once.
        conditions = self._look_at_reference()
        pose = self._pose_features()

        # The sampler, and the network that it asks for each window at each step.
        seed = request.noise_seed()
        sampling = ClipSampling(
            self._layout,
            self._scheduler(),
            noise=self._noise(seed),
            generators=keyed_generators(seed),
            network=GuidedVelocity(
                denoiser=pipeline.denoiser,
                conditions=conditions,
                pose=pose,
                guidance_scale=request.guidance_scale,
                share=pipeline.memory is None or pipeline.memory.share,
            ),
            after_step=self._call_back if request.callback_on_step_end else None,
        )

        # Predictions in the order of the wavefront; a block of frames is handed out when it has done all steps.
        done, total = 0, sampling.num_predictions
        with pipeline.progress_bar(total=total) as bar:
            for event in sampling.run():
                if pipeline.interrupt:
                    return
                if isinstance(event, Finished):
                    pose.release(event.block)
                    yield event
                else:
                    done += 1
                    bar.update()
                    if request.progress is not None:
                        request.progress("video", done, total)

    def _look_at_reference(self) -> ReferenceConditions:
        pipeline, device = self._pipeline, self._device
        rest = pipeline.memory is not None and pipeline.memory.rest
        image = self._request.image(self._width, self._height)
        awake(pipeline.vae)
        with at_work(pipeline.image_encoder, device, rest=rest):
            token = self._images.embedding(image)[:, None].to(device)
        awake(pipeline.vae)
        latents = self._images.mean(self._images.moments(image)).to(device)
        with at_work(pipeline.reference_net, device, rest=rest):
            return ReferenceConditions.of(pipeline.reference_net, pipeline.denoiser, latents, token)

    def _pose_features(self) -> PoseFeatures:
        request, guider, memory = self._request, self._pipeline.pose_guider, self._pipeline.memory
        height, width = (GUIDANCE_SCALE * side for side in self._latent_size)
        reference = None
        if guider.config["reference_attention"]:
            assert request.reference_landmarks is not None
            image = drawn(request.reference_landmarks[None], width, height)([0])
            reference = awake(guider).encode_reference(as_input(image, guider, self._device))
        return PoseFeatures(
            guider,
            drawn(request.landmarks, width, height),
            self._layout,
            reference=reference,
            keep=memory.keep_pose if memory else "device",
            device=self._device,
        )

    def _scheduler(self) -> SchedulerMixin:
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(self._request.num_inference_steps)
        return scheduler

    def _noise(self, seed: int) -> Noise:
        if self._request.latents is not None:
            return given_noise(self._request.latents, self._device)
        shape = (latent_channels(self._pipeline.vae), *self._latent_size)
        return keyed_noise(seed, shape, self._device)

    def _call_back(self, done: StepDone) -> Tensor:
        request, pipeline = self._request, self._pipeline
        assert request.callback_on_step_end is not None
        tensors = {"latents": done.latents} if "latents" in request.callback_on_step_end_tensor_inputs else {}
        pipeline.current_frames = done.frames
        changed = request.callback_on_step_end(pipeline, done.step, done.timestep, tensors) or {}
        latents = changed.get("latents", done.latents)
        if not isinstance(latents, Tensor) or latents.shape != done.latents.shape:
            about = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"callback_on_step_end must return latents {list(done.latents.shape)}, not {about}")
        return latents.to(done.latents)
