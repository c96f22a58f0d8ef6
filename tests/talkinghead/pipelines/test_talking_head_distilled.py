"""Distilled weights: samplers of few steps are for weights that say so, and give the same frames however they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler

from talkinghead.models.noise_schedule import PAPER
from talkinghead.pipelines.memory import PRESETS
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

FRAMES = 5
REQUEST = tiny_request(FRAMES, 32, 32)
WINDOWS: dict[str, Any] = {"context_frames": 3, "context_overlap": 1}
SAMPLERS = {"lcm": LCMScheduler, "tcd": TCDScheduler}


def distilled(kind: Any, **settings: Any) -> TalkingHeadPipeline:
    """A pipeline that says that it is distilled, with its sampler."""
    scheduler = SAMPLERS[kind].from_config(PAPER.sampler().config)
    made = tiny_pipeline(scheduler=scheduler, distilled=kind, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def shown(pipeline: TalkingHeadPipeline, **options: Any) -> np.ndarray:
    return np.stack(list(pipeline.stream(**(REQUEST | WINDOWS | options))))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_frames_do_not_depend_on_how_they_are_made(kind: str) -> None:
    """Streamed or whole, by any preset, whatever else drew numbers; and seed and frame alone key the noise."""
    pipeline = distilled(kind)
    frames = shown(pipeline)
    assert frames.shape == (FRAMES, 32, 32, 3) and len({frame.tobytes() for frame in frames}) == FRAMES
    torch.rand(3)
    whole = pipeline(**REQUEST, **WINDOWS).frames  # pyright: ignore[reportAttributeAccessIssue]
    assert np.array_equal(np.stack([np.asarray(image) for image in whole]), frames)
    for gigabytes in PRESETS:
        pipeline.apply_preset(gigabytes)
        assert np.abs(shown(pipeline).astype(int) - frames).max() <= 1, gigabytes
    assert not np.array_equal(shown(pipeline, seed=1), frames)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_noise_of_the_steps_leaves_no_seam(kind: str) -> None:
    """Without motion modules frames do not interact: then a frame is the same in any window, at its edge or not."""
    pipeline = distilled(kind, motion=False)
    few, many = (shown(pipeline, context_frames=size).astype(int) for size in (2, 5))
    assert np.abs(few - many).max() <= 1
    long = tiny_request(9, 32, 32)
    options: dict[str, Any] = {"context_frames": 4}
    start = np.stack(list(pipeline.stream(**(long | {"landmarks": long["landmarks"][:FRAMES]}), **options)))
    assert np.abs(np.stack(list(pipeline.stream(**long, **options)))[:FRAMES].astype(int) - start).max() <= 1


def test_four_steps_without_guidance_unless_asked_otherwise() -> None:
    pipeline, ordinary = distilled("lcm"), tiny_pipeline()
    ordinary.set_progress_bar_config(disable=True)
    times: list[int] = []

    def note(_owner: Any, _step: int, timestep: torch.Tensor, _tensors: dict[str, Any]) -> None:
        times.append(int(timestep))

    one: dict[str, Any] = REQUEST | {"landmarks": REQUEST["landmarks"][:1]}
    usual = next(pipeline.stream(**one, callback_on_step_end=note))
    assert times == [999, 759, 499, 259]
    assert np.array_equal(usual, next(pipeline.stream(**one, num_inference_steps=4, guidance_scale=1)))
    times.clear()
    assert list(pipeline.stream(**one, num_inference_steps=8, callback_on_step_end=note)) and len(times) == 8
    times.clear()
    found = next(ordinary.stream(**one, callback_on_step_end=note))
    assert len(times) == 25
    assert np.array_equal(found, next(ordinary.stream(**one, num_inference_steps=25, guidance_scale=3.5)))


def test_what_does_not_fit_is_refused() -> None:
    pipeline, ordinary = distilled("lcm"), tiny_pipeline()
    ordinary.scheduler = pipeline.scheduler
    with pytest.raises(ValueError, match=r"distilled is None in model_index\.json, not 'lcm': ordinary weights give"):
        ordinary.stream(**REQUEST)
    with pytest.raises(ValueError, match=r"guidance_scale must be at most 1 with distilled weights, not 3\.5"):
        pipeline.stream(**REQUEST, guidance_scale=3.5)
    with pytest.raises(ValueError, match="num_inference_steps must be at most 50, not 51"):
        pipeline.stream(**REQUEST, num_inference_steps=51)
    pipeline.scheduler = TCDScheduler.from_config(PAPER.sampler().config)
    with pytest.raises(ValueError, match=r"distilled is 'lcm' in .*, not 'tcd'"):
        pipeline.stream(**REQUEST)
    pipeline.scheduler = LCMScheduler.from_config(PAPER.sampler().config, beta_schedule="linear")
    with pytest.raises(ValueError, match="beta_schedule 'linear'"):
        pipeline.stream(**REQUEST)
    with pytest.raises(ValueError, match="distilled must be None or one of lcm, tcd, not 'turbo'"):
        tiny_pipeline(distilled="turbo")


def test_weights_keep_saying_so(tmp_path: Path) -> None:
    pipeline = distilled("tcd")
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["distilled"] == "tcd"
    read = TalkingHeadPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert isinstance(read.scheduler, TCDScheduler) and read.config["distilled"] == "tcd"
    assert np.abs(shown(read).astype(int) - shown(pipeline)).max() <= 1
    # Said of a folder that does not know it, such as of weights that were merged with a distillation's adapter.
    tiny_pipeline().save_pretrained(tmp_path / "ordinary")
    told = TalkingHeadPipeline.from_pretrained(tmp_path / "ordinary", distilled="tcd", scheduler=read.scheduler)
    told.set_progress_bar_config(disable=True)
    assert len(shown(told)) == FRAMES
