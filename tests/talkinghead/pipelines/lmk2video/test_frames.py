"""Weights whose results exceed the range of a precision: an error says which to use; there are no black frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from talkinghead.pipelines.lmk2video.frames import decode
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

BEYOND_HALF = 1e6
REQUEST: dict[str, Any] = tiny_request(1, 32, 32) | {"num_inference_steps": 1}


@pytest.fixture
def pipeline() -> TalkingHeadPipeline:
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def _scale(weight: torch.Tensor, factor: float) -> None:
    weight.mul_(factor)


@pytest.mark.parametrize(("part", "name"), [("reference_net", "reference network"), ("denoiser", "denoiser")])
def test_half_precision_that_overflows(pipeline: TalkingHeadPipeline, part: str, name: str) -> None:
    _scale(getattr(pipeline, part).conv_in.weight, BEYOND_HALF)
    for dtype in (torch.float32, torch.bfloat16):
        pipeline.apply_preset(24, dtype=dtype)
        assert next(pipeline.stream(**REQUEST)).std() > 1
    pipeline.apply_preset(24, dtype=torch.float16)
    with pytest.raises(ValueError, match=rf"the numbers of the {name} exceed the range of float16.*--dtype bf16"):
        next(pipeline.stream(**REQUEST))


def test_weights_that_diverged(pipeline: TalkingHeadPipeline) -> None:
    _scale(pipeline.denoiser.conv_in.weight, float("nan"))
    with pytest.raises(ValueError, match=r"the denoiser gives numbers that are not finite, in float32"):
        next(pipeline.stream(**REQUEST))


def test_latents_that_cannot_be_decoded() -> None:
    class Images:
        vae = torch.zeros(0, dtype=torch.float16)

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents * float("nan")

    images: Any = Images()
    with pytest.raises(ValueError, match=r"the numbers of the VAE exceed the range of float16"):
        next(decode(images, torch.zeros(1, 4, 2, 2), 1))
