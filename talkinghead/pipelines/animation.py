"""One run of a talking-head pipeline: look at the portrait, sample in windows, decode what is finished."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from talkinghead.models.picture_encoder import PictureEncoder, latent_channels
from talkinghead.models.pose_guider import GUIDANCE_SCALE
from talkinghead.pipelines.clip_request import ClipRequest
from talkinghead.pipelines.frames import decode
from talkinghead.pipelines.memory import at_work, awake, out_of_memory_explained
from talkinghead.pipelines.pose_features import PoseFeatures, as_input, drawn
from talkinghead.pipelines.request_checks import request_windows
from talkinghead.pipelines.sampling import (
    ClipSampling,
    Finished,
    Noise,
    StepDone,
    given_noise,
    keyed_generators,
    keyed_noise,
)
from talkinghead.pipelines.velocity import GuidedVelocity, ReferenceConditions

if TYPE_CHECKING:
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline

_DECODE_CHUNK = 4
"""Frames decoded at once without a memory preset."""


class Animation:
    """One run. A pipeline can be in several at once, but for its `interrupt` and `current_frames`: those are one.

    Args:
        pipeline: Its networks are put in evaluation mode.
        request: Checked.
        size: Width and height of the frames, pixels.
    """

    def __init__(self, pipeline: TalkingHeadPipeline, request: ClipRequest, size: tuple[int, int]) -> None:
        self._pipeline = pipeline
        self._request = request
        self._width, self._height = size
        scale = pipeline.vae_scale_factor
        self._latent_size = (self._height // scale, self._width // scale)
        self._layout = request_windows(request, pipeline)
        self._pictures = PictureEncoder(pipeline.vae, pipeline.image_encoder)
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
                    yield from decode(self._pictures, finished.latents, chunk)
        pipeline.maybe_free_model_hooks()

    def frame_shape(self, *, latent: bool) -> tuple[int, int, int]:
        """(C, h, w) of a frame's latents, or of its picture."""
        if latent:
            return latent_channels(self._pipeline.vae), *self._latent_size
        return 3, self._height, self._width

    @property
    def _device(self) -> torch.device:
        return self._pipeline._execution_device

    def _finished(self) -> Iterator[Finished]:
        request, pipeline = self._request, self._pipeline
        conditions = self._look_at_reference()
        pose = self._pose_features()
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
        done, total = 0, sampling.num_predictions
        progress_bar: Any = pipeline.progress_bar  # its type is lost behind a decorator
        with progress_bar(total=total) as bar:
            for event in sampling.run():
                if pipeline.interrupt:
                    return
                if isinstance(event, Finished):
                    pose.release(event.block)
                    yield event
                else:
                    done += 1
                    bar.update()
                    if request.watch is not None:
                        request.watch("video", done, total)

    def _look_at_reference(self) -> ReferenceConditions:
        pipeline, device = self._pipeline, self._device
        rest = pipeline.memory is not None and pipeline.memory.rest
        picture = self._request.picture(self._width, self._height)
        awake(pipeline.vae)
        with at_work(pipeline.image_encoder, device, rest=rest):
            token = self._pictures.embedding(picture)[:, None].to(device)
        awake(pipeline.vae)
        latents = self._pictures.mean(self._pictures.moments(picture)).to(device)
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
        pipeline._current_frames = done.frames
        changed = request.callback_on_step_end(pipeline, done.step, done.timestep, tensors) or {}
        latents = changed.get("latents", done.latents)
        if not isinstance(latents, Tensor) or latents.shape != done.latents.shape:
            about = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"callback_on_step_end must return latents {list(done.latents.shape)}, not {about}")
        return latents.to(done.latents)
