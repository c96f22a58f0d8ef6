"""The whole pipeline equals the plain loop: all windows at each step, with nothing reused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from torch import Tensor

from talkinghead import rng
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.noise_schedule import COMPAT_INFER, PAPER
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import published_guider, tiny_pipeline, tiny_request

FRAMES, STEPS, SCALE = 7, 3, 2.5
WINDOWS = {
    False: [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]],
    True: [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 0], [6, 0, 1, 2]],
}


def compat_pipeline() -> TalkingHeadPipeline:
    """Pipeline of the published kind: pose features depend on the window, without attention to the reference."""
    return tiny_pipeline(compat=True, scheduler=COMPAT_INFER.sampler("ddim"), pose_guider=published_guider())


@torch.no_grad()
def plain_loop(pipeline: TalkingHeadPipeline, request: dict[str, Any], *, compat: bool) -> Tensor:
    """Latents of all frames, `[F, C, h, w]`."""
    networks = ImageNetworks(pipeline.vae, pipeline.image_encoder)
    portrait = torch.from_numpy(request["reference"]).permute(2, 0, 1)[None]
    token = networks.embedding(portrait).float()[:, None]
    reference = pipeline.reference_net(networks.mean(networks.moments(portrait)), token)
    images = torch.stack([_image(points) for points in request["landmarks"]])
    reference_image = None if compat else _image(request["reference_landmarks"])[None]
    draws = [rng.generator(5, "first noise", frame) for frame in range(FRAMES)]
    latents = torch.from_numpy(np.stack([draw.standard_normal((16, 8, 8), dtype="float32") for draw in draws]))
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        total, weight = torch.zeros_like(latents), torch.zeros(FRAMES, 1, 1, 1)
        for window in WINDOWS[compat]:
            shares = torch.tensor([1.0, 1, 1, 1] if compat else [1.0, 2, 2, 1])[:, None, None, None]
            given: dict[str, Any] = {"latents": latents[None, window], "timestep": timestep}
            given["pose"] = pipeline.pose_guider(images[None, window], reference_image)
            conditional = pipeline.denoiser(**given, token=token, reference=reference)[0]
            unconditional = pipeline.denoiser(**given, token=torch.zeros_like(token))[0]
            total[window] += shares * (unconditional + SCALE * (conditional - unconditional))
            weight[window] += shares
        latents = scheduler.step(total / weight, timestep, latents).prev_sample
    return latents


def _image(points: np.ndarray) -> Tensor:
    return torch.from_numpy(draw_guidance(points, 64, 64)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("compat", [False, True])
def test_equals_the_plain_loop(compat: bool) -> None:
    pipeline = compat_pipeline() if compat else tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    request = tiny_request(FRAMES, 32, 32)
    found = pipeline(
        **request,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        seed=5,
        context_frames=4,
        context_overlap=2,
        output_type="latent",
    ).frames  # pyright: ignore[reportAttributeAccessIssue]
    want = plain_loop(pipeline, request, compat=compat)
    assert float((found - want).norm() / want.norm()) < 1e-4 and want.std() > 0.3


@pytest.mark.parametrize(("kind", "sampler"), [("lcm", LCMScheduler), ("tcd", TCDScheduler)])
@torch.no_grad()
def test_distilled_weights_equal_the_stock_loop(kind: Any, sampler: Any) -> None:
    """One window over the clip: the stock scheduler's own loop, with noise that is keyed by frame."""
    pipeline = tiny_pipeline(scheduler=sampler.from_config(PAPER.sampler().config), distilled=kind)
    pipeline.set_progress_bar_config(disable=True)
    request, frames = tiny_request(3, 32, 32), range(3)
    found = pipeline(**request, seed=5, context_frames=3, output_type="latent").frames  # pyright: ignore[reportAttributeAccessIssue]

    networks = ImageNetworks(pipeline.vae, pipeline.image_encoder)
    portrait = torch.from_numpy(request["reference"]).permute(2, 0, 1)[None]
    token = networks.embedding(portrait).float()[:, None]
    reference = pipeline.reference_net(networks.mean(networks.moments(portrait)), token)
    images = torch.stack([_image(points) for points in request["landmarks"]])
    pose = pipeline.pose_guider(images[None], _image(request["reference_landmarks"])[None])
    draws = [rng.generator(5, "first noise", frame) for frame in frames]
    latents = torch.from_numpy(np.stack([draw.standard_normal((16, 8, 8), dtype="float32") for draw in draws]))
    keys = [rng.key_bits(5, "noise of steps", frame) % 2**63 for frame in frames]
    generators = [torch.Generator().manual_seed(key) for key in keys]
    scheduler = sampler.from_config(PAPER.sampler().config)
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        velocity = pipeline.denoiser(latents[None], timestep, pose=pose, token=token, reference=reference)[0]
        latents = scheduler.step(velocity, timestep, latents, generator=generators).prev_sample
    assert float((found - latents).norm() / latents.norm()) < 1e-4 and latents.std() > 0.3
