"""One video of a talking-head pipeline, from a checked request to frames.

1. Refuse what the networks cannot do (`check_request`), before anything is computed.
2. Encode the portrait once: its image token, and the keys and values of the reference network's features.
3. Sample latents in windows, block by block (`sampling.ClipSampling`); pose features are computed when a window needs
   them.
4. Decode each block of frames as soon as it has done all steps.
"""

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
from talkinghead.models.noise_schedule import (
    COMPAT_INFER,
    PAPER,
    Distillation,
    NoiseSchedule,
    check_distilled,
    most_steps,
)
from talkinghead.pipelines.lmk2video.clip_request import ClipRequest
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, lay_windows, usual_overlap
from talkinghead.pipelines.lmk2video.frames import decode
from talkinghead.pipelines.lmk2video.moving_landmarks import MovingLandmarks
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
    """Interface of the pipeline that an animation uses (`talking_head.TalkingHeadPipeline`)."""

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
    """Method that makes a progress bar; its type is lost in a decorator of `diffusers`."""
    current_frames: range
    """Frames whose latents a callback gets; valid during the callback."""

    @property
    def interrupt(self) -> bool:
        """Whether the video ends here, without further frames."""
        ...

    @property
    def compute_device(self) -> torch.device:
        """Device of the computation, also when weights are kept elsewhere."""
        ...

    def maybe_free_model_hooks(self) -> None:
        """Let `diffusers` offload what it has put on the device."""
        ...


_OTHERS = "Its noise is not what they were trained on; take DDIM, DPM-Solver++ multistep, Euler or UniPC"


def check_request(request: ClipRequest, pipeline: AnimationPipeline, width: int, height: int) -> None:
    """Refuse requests that a pipeline's networks cannot fulfil.

    Args:
        request: Request, whose own values were checked when it was made.
        pipeline: Pipeline with the networks and the scheduler.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.

    Raises:
        ValueError: Something does not fit; says what, and what would.
    """
    check_image_size(width, height, pipeline.vae)
    _check_windows(request, pipeline)
    distilled = pipeline.config["distilled"]
    check_scheduler(pipeline.scheduler, compat=pipeline.config["compat"], distilled=distilled)
    known = most_steps(pipeline.scheduler)
    steps, guidance_scale = _asked(request, pipeline)
    if steps > known:
        raise ValueError(f"num_inference_steps must be at most {known}, not {steps}")
    if distilled is not None and guidance_scale > 1:
        raise ValueError(
            f"guidance_scale must be at most 1 with distilled weights, not {guidance_scale:g}: they have learnt frames"
            " with guidance, and more of it overexposes them"
        )
    if pipeline.pose_guider.config["reference_attention"] and request.reference_landmarks is None:
        raise ValueError("this PoseGuider attends to the portrait's own landmarks: give reference_landmarks too")
    # Noise from outside must have the shape of the whole video's latents.
    if request.latents is not None:
        scale = pipeline.vae_scale_factor
        wanted = (request.num_frames, latent_channels(pipeline.vae), height // scale, width // scale)
        if tuple(request.latents.shape) != wanted:
            raise ValueError(f"latents must be {list(wanted)}, not {list(request.latents.shape)}")


def check_scheduler(scheduler: SchedulerMixin, *, compat: bool, distilled: Distillation | None) -> None:
    """Refuse samplers of another noise schedule than the networks were trained on, or of another kind of networks.

    Args:
        scheduler: Sampler of `diffusers`.
        compat: Whether the weights are AniPortrait's, which are sampled on another schedule than they were trained on;
            both schedules fit then.
        distilled: How the networks were distilled; None: not at all.

    Raises:
        ValueError: The scheduler does not fit; says in which settings.
    """
    _check_settings(scheduler)
    check_distilled(scheduler, distilled)

    # Settings first, because their error says which one to change.
    schedule = PAPER
    try:
        PAPER.check(scheduler)
    except ValueError:
        if not compat:
            raise
        schedule = COMPAT_INFER
        schedule.check(scheduler)

    # Then the noise levels themselves: a class may read the same settings in another way, or have no such table.
    shares = getattr(scheduler, "alphas_cumprod", None)
    if shares is None or not torch.allclose(shares.cpu().float(), schedule.alphas_cumprod, rtol=1e-3, atol=1e-6):
        raise ValueError(f"{type(scheduler).__name__} does not fit the networks. {_OTHERS}")


def _check_settings(scheduler: Any) -> None:
    """Refuse schedulers that lack a setting of a noise schedule, or that are not schedulers of `diffusers`."""
    if not isinstance(scheduler, SchedulerMixin):
        raise ValueError(f"the scheduler must be one of diffusers', not {type(scheduler).__name__}")
    # Asked of the class, not of the configuration: `from_config` also keeps settings there that the class ignores.
    known = inspect.signature(type(scheduler)).parameters
    missing = [name for name in NoiseSchedule.__dataclass_fields__ if name not in known]
    if missing:
        raise ValueError(f"{type(scheduler).__name__} does not fit: it has no setting {missing[0]}. {_OTHERS}")


def context(request: ClipRequest, pipeline: AnimationPipeline) -> tuple[int, int]:
    """Number of frames of a window, and of frames that neighbouring windows share.

    Where the request leaves them open, windows are as long as in training and share a quarter.
    """
    size = pipeline.config["context_frames"] if request.context_frames is None else request.context_frames
    return size, usual_overlap(size) if request.context_overlap is None else request.context_overlap


_STEPS, _GUIDANCE = 25, 3.5
"""Number of steps and guidance scale where a request leaves them open."""
_DISTILLED_STEPS, _DISTILLED_GUIDANCE = 4, 1.0
"""With distilled weights: the papers show 1 to 8 steps, and little gain after 4; guidance is a part of what the weights
were distilled from (arXiv 2310.04378, section 4.2), and is off here."""


def steps_and_guidance(
    steps: int | None, guidance_scale: float | None, distilled: Distillation | None
) -> tuple[int, float]:
    """Number of the sampler's steps, and guidance scale: as asked for; where that is None, what suits the weights."""
    usual = (_STEPS, _GUIDANCE) if distilled is None else (_DISTILLED_STEPS, _DISTILLED_GUIDANCE)
    return usual[0] if steps is None else steps, usual[1] if guidance_scale is None else guidance_scale


def _asked(request: ClipRequest, pipeline: AnimationPipeline) -> tuple[int, float]:
    return steps_and_guidance(request.num_inference_steps, request.guidance_scale, pipeline.config["distilled"])


def request_windows(request: ClipRequest, pipeline: AnimationPipeline) -> WindowLayout:
    """Windows over the requested video."""
    # Without motion modules and with independent pose features, frames do not interact and windows need not overlap.
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
"""Number of frames decoded at once without a memory preset."""


class Animation:
    """One video of a pipeline.

    A pipeline can make several videos at once, but they share its `interrupt` and `current_frames`.

    Args:
        pipeline: Pipeline, whose networks are put in evaluation mode.
        request: Request that has passed `check_request`.
        size: Width and height of the frames in pixels.
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
        """Frames of the video in order, as they are finished.

        Args:
            latent: Whether to yield latents rather than decoded frames.

        Yields:
            Latents, float32 `[n, C, h, w]`, or frames, float32 `[n, 3, H, W]` in [0, 1]; on the CPU.

        Raises:
            ValueError: Memory ran out; says what to do.
        """
        pipeline, memory = self._pipeline, self._pipeline.memory
        chunk = self._request.decode_chunk_size or (memory.decode_chunk_size if memory else _DECODE_CHUNK)
        # A generator: everything below happens while the caller takes frames, also the errors.
        with out_of_memory_explained(memory, self._device, f"frames of {self._width}x{self._height} pixels"):
            for finished in self._finished():
                if latent:
                    yield finished.latents.cpu()
                else:
                    awake(pipeline.vae)
                    yield from decode(self._images, finished.latents, chunk)
        pipeline.maybe_free_model_hooks()

    def frame_shape(self, *, latent: bool) -> tuple[int, int, int]:
        """Shape (C, h, w) of a frame's latents, or (3, H, W) of its image."""
        if latent:
            return latent_channels(self._pipeline.vae), *self._latent_size
        return 3, self._height, self._width

    @property
    def _device(self) -> torch.device:
        return self._pipeline.compute_device

    def _finished(self) -> Iterator[Finished]:
        """Blocks of frames with their final latents, in order."""
        request, pipeline = self._request, self._pipeline

        # Computed once for the whole video: the portrait's conditions. Pose features only get ready here.
        conditions = self._reference_conditions()
        pose = self._pose_features()

        # The sampler, with the network that predicts each window at each step. A frame's noise is a function of
        # seed and frame, so it depends neither on the windows nor on the device.
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
                guidance_scale=_asked(request, pipeline)[1],
                share=pipeline.memory is None or pipeline.memory.share,
            ),
            after_step=self._call_back if request.callback_on_step_end else None,
        )

        # Predictions in the order of the wavefront; a block of frames is handed out when it has done all steps. An
        # interruption takes effect between two predictions.
        done, total = 0, sampling.num_predictions
        with pipeline.progress_bar(total=total) as bar:
            for event in sampling.run():
                if pipeline.interrupt:
                    return
                if isinstance(event, Finished):
                    pose.release(event.block)
                    if isinstance(request.landmarks, MovingLandmarks):
                        request.landmarks.release(self._layout.blocks[event.block].frames)
                    yield event
                else:
                    done += 1
                    bar.update()
                    if request.progress is not None:
                        request.progress("video", done, total)

    def _reference_conditions(self) -> ReferenceConditions:
        """Conditions of the portrait: image token, and keys and values of its features."""
        pipeline, device = self._pipeline, self._device
        rest = pipeline.memory is not None and pipeline.memory.rest
        image = self._request.image(self._width, self._height)  # uint8 [1, 3, H, W]

        # The image token. The VAE is woken before too, because `ImageNetworks` computes on the VAE's device.
        awake(pipeline.vae)
        with at_work(pipeline.image_encoder, device, rest=rest):
            token = self._images.embedding(image)[:, None].to(device)  # [1, 1, D]

        # Latents of the portrait: the mean without noise. With offloading, waking the VAE again moves the image
        # encoder off the device.
        awake(pipeline.vae)
        latents = self._images.mean(self._images.moments(image)).to(device)

        # Features of the reference network. After this only denoiser, PoseGuider and the VAE's decoder are needed.
        with at_work(pipeline.reference_net, device, rest=rest):
            return ReferenceConditions.of(pipeline.reference_net, pipeline.denoiser, latents, token)

    def _pose_features(self) -> PoseFeatures:
        """Pose features of the video, computed later; the portrait's landmarks are encoded now."""
        request, guider, memory = self._request, self._pipeline.pose_guider, self._pipeline.memory
        # Guidance images have a size of their own where the VAE's factor is not that of the PoseGuider's stem.
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
        """Copy of the pipeline's scheduler for this video, whose steps leave the pipeline's as it is."""
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(_asked(self._request, self._pipeline)[0])
        return scheduler

    def _noise(self, seed: int) -> Noise:
        """First noise: the request's own latents, or drawn by seed and frame."""
        if self._request.latents is not None:
            return given_noise(self._request.latents, self._device)
        shape = (latent_channels(self._pipeline.vae), *self._latent_size)
        return keyed_noise(seed, shape, self._device)

    def _call_back(self, done: StepDone) -> Tensor:
        """Latents after the user's callback for one step of one block of frames."""
        request, pipeline = self._request, self._pipeline
        assert request.callback_on_step_end is not None
        tensors = {"latents": done.latents} if "latents" in request.callback_on_step_end_tensor_inputs else {}
        pipeline.current_frames = done.frames
        # Callbacks of `diffusers` return a dictionary of changed tensors, or nothing.
        changed = request.callback_on_step_end(pipeline, done.step, done.timestep, tensors) or {}
        latents = changed.get("latents", done.latents)
        if not isinstance(latents, Tensor) or latents.shape != done.latents.shape:
            about = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"callback_on_step_end must return latents {list(done.latents.shape)}, not {about}")
        return latents.to(done.latents)
