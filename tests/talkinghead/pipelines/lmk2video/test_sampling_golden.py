"""Published sampling loop, with all networks at full size (weights by a formula; gigabytes and minutes)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import Kind, fill, published_names, published_pose_guider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.noise_schedule import COMPAT_INFER
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, published_windows
from talkinghead.pipelines.lmk2video.sampling import ClipSampling, StepDone, given_noise
from talkinghead.pipelines.lmk2video.velocity import GuidedVelocity, PoseFeatures, ReferenceConditions
from tests.support.golden_weights import golden_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CPU = torch.device("cpu")
GUIDANCE = 3.5
FIRST_LIMIT = 1e-4
LIMITS = (1e-4, 1e-4, 2e-4, 5e-4)
"""Limits of the relative error of the latents after each step."""


class Recording(DDIMScheduler):
    """Sampler that records the predictions it gets, in a list that all copies share."""

    seen: ClassVar[list[Tensor]] = []

    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Step of the sampler."""
        self.seen.append(model_output)
        return super().step(model_output, *args, **kwargs)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Mapping[str, np.ndarray]:
    with np.load(shared / "goldens" / "dev" / "sampler.npz", allow_pickle=False) as file:
        return dict(file)


def _filled(network: type[nn.Module], kinds: tuple[Kind, ...], **settings: Any) -> Any:
    with torch.device("meta"):
        model = network(**settings)
    for kind in kinds:
        shapes = {
            name: tuple(value.shape)
            for key, value in model.state_dict().items()
            if (".motion_modules." in key) == (kind == "motion_module")
            for name in published_names(key)
        }
        fill(model, golden_state(f"{kind}.pth", shapes), kind, f"{kind}.pth")
        gc.collect()
    return model.eval()


@pytest.fixture(scope="module")
def velocity(golden: Mapping[str, np.ndarray]) -> Iterator[GuidedVelocity]:
    """Guided velocity, made so that the two large networks are never in memory at once."""
    token = torch.from_numpy(golden["clip"])
    with torch.no_grad():
        features = _filled(ReferenceNet, ("reference_unet",))(torch.from_numpy(golden["ref_latent"]), token, fold=True)
        gc.collect()
        denoiser: Denoiser = _filled(Denoiser, ("denoising_unet", "motion_module"), motion=True)
        conditions = ReferenceConditions(token=token, projected=denoiser.project_reference(features))
    pose = PoseFeatures(
        _filled(PoseGuider, ("pose_guider",), **published_pose_guider("published")),
        lambda frames: golden["images"][list(frames)],
        _layout(),
        reference=None,
        keep="device",
        device=CPU,
    )
    yield GuidedVelocity(denoiser=denoiser, conditions=conditions, pose=pose, guidance_scale=GUIDANCE, share=True)
    gc.collect()


def _layout() -> WindowLayout:
    return WindowLayout(windows=published_windows(18), weighting="uniform")


def _error(found: Tensor, want: np.ndarray) -> float:
    """Relative error of frames `[F, C, h, w]` from values stored as `(1, C, F, h, w)`."""
    stored = torch.from_numpy(want)[0].transpose(0, 1)
    return float((found - stored).norm() / stored.norm())


@torch.no_grad()
def test_the_whole_loop(golden: Mapping[str, np.ndarray], velocity: GuidedVelocity) -> None:
    assert np.array_equal(golden["windows"], published_windows(18))
    scheduler = Recording(**COMPAT_INFER.sampler("ddim").config)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == golden["timesteps"].tolist()
    Recording.seen.clear()
    guided = torch.zeros(18, 4, 16, 16)
    latents = [torch.zeros(18, 4, 16, 16) for _ in LIMITS]
    left = [18] * len(LIMITS)

    def after(done: StepDone) -> Tensor:
        part = slice(done.frames.start, done.frames.stop)
        latents[done.step][part] = done.latents
        if done.step == 0:
            guided[part] = Recording.seen[-1]
        left[done.step] -= len(done.frames)
        if left[done.step] == 0:  # checked at once, because sampling to the end takes minutes
            if done.step == 0:
                assert _error(guided, golden["guided_first"]) < FIRST_LIMIT
            error = _error(latents[done.step], golden[f"latent_after.{done.step}"])
            print(f"step {done.step}: {error:.1e}")
            assert error < LIMITS[done.step], done.step
        return done.latents

    noise = given_noise(torch.from_numpy(golden["latent"])[0].transpose(0, 1), CPU)
    sampling = ClipSampling(_layout(), scheduler, noise=noise, network=velocity, after_step=after)
    assert sum(1 for _ in sampling.run()) == sampling.num_predictions + len(_layout().blocks)
    assert not any(left)
