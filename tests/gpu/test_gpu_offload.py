"""Offloading on a GPU: which networks are there when, and the frames of a pipeline that stays there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from talkinghead.models.noise_schedule import PAPER
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

REQUEST: dict[str, Any] = tiny_request(6, 64, 64) | {"context_frames": 3, "context_overlap": 1}


def quiet(**settings: Any) -> TalkingHeadPipeline:
    made = tiny_pipeline(vae="tiny-kl", **settings)
    made.set_progress_bar_config(disable=True)
    return made


def shown(pipeline: TalkingHeadPipeline, **options: Any) -> np.ndarray:
    return np.stack(list(pipeline.stream(**REQUEST, **options))).astype(int)


def test_offloaded_networks_are_there_only_while_they_work() -> None:
    pipeline = quiet()
    frames = shown(pipeline.to("cuda"), num_inference_steps=2)
    pipeline.enable_model_cpu_offload()
    there: list[set[str]] = []

    def look(owner: TalkingHeadPipeline, *_: Any) -> None:
        networks = {name: part for name, part in owner.components.items() if isinstance(part, torch.nn.Module)}
        there.append({name for name, part in networks.items() if next(part.parameters()).device.type == "cuda"})

    for _ in range(2):
        found = shown(pipeline, num_inference_steps=2, callback_on_step_end=look)
        assert np.abs(found - frames).max() <= 1
        assert pipeline.device.type == "cpu", "after the last frame"
    assert all({"denoiser", "pose_guider"} <= names for names in there)
    assert not any(names & {"image_encoder", "reference_net"} for names in there)


def test_noise_of_the_steps_is_the_same_on_every_device() -> None:
    scheduler = LCMScheduler.from_config(PAPER.sampler().config)
    pipeline = quiet(scheduler=scheduler, distilled="lcm")
    on_cpu = shown(pipeline)
    # The arithmetic differs in rounding; other noise would differ everywhere.
    assert np.abs(shown(pipeline.to("cuda")) - on_cpu).mean() < 2
