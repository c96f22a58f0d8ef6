"""Sampling in a wavefront equals sampling step by step over the whole video, bit for bit."""

from __future__ import annotations

import copy
import gc
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, TCDScheduler
from torch import Tensor

from talkinghead.models.noise_schedule import COMPAT_INFER, PAPER, Sampler
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, open_windows, published_windows
from talkinghead.pipelines.lmk2video.sampling import (
    ClipSampling,
    Finished,
    StepDone,
    given_noise,
    keyed_generators,
    keyed_noise,
)

CPU = torch.device("cpu")
LAYOUTS = {
    "open": WindowLayout(windows=open_windows(23, 6, 2)),
    "moved last window": WindowLayout(windows=open_windows(15, 7, 3)),
    "three windows over a frame": WindowLayout(windows=open_windows(20, 8, 5)),
    "closed": WindowLayout(windows=published_windows(23, 6, 2), weighting="uniform"),
    "short": WindowLayout(windows=open_windows(5, 6, 2)),
}


class Network:
    """Network whose result depends on each frame, on all frames of a window, on their places in it, and on the time."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[int, float]] = Counter()

    def begin(self, block: int, latents: Tensor, timestep: Tensor) -> Tensor:
        self.begun[block, float(timestep)] += 1
        return latents * (1 + timestep / 1000)

    def predict(self, window: int, parts: Sequence[Tensor], timestep: Tensor) -> Tensor:
        latents = torch.cat(list(parts))
        mixed = latents.mean(0, keepdim=True) + 0.3 * latents.roll(1, 0)
        return torch.tanh(mixed + latents * torch.linspace(-1, 1, len(latents))[:, None, None, None] + window / 50)


def scheduler(name: Sampler, steps: int) -> Any:
    sampler = PAPER.sampler(name)
    sampler.set_timesteps(steps)
    return sampler


def step_by_step(layout: WindowLayout, sampler: Any, noise: Tensor, **settings: Any) -> Tensor:
    """Latents by the plain loop: all windows, their weighted mean for all frames, then a step of all frames."""
    sampler = copy.deepcopy(sampler)
    weights = np.zeros((len(layout.windows), len(noise)))
    for row, window in zip(weights, layout.windows, strict=True):
        size = len(window)
        row[list(window)] = [min(at + 1, size - at) if layout.weighting == "triangular" else 1 for at in range(size)]
    shares = torch.from_numpy((weights / weights.sum(axis=0)).astype(np.float32))[:, :, None, None, None]
    latents = noise * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(latents, timestep)
        velocity = torch.zeros_like(latents)
        for number, window in enumerate(layout.windows):
            frames = list(window)
            begun = Network().begin(0, scaled[frames], timestep)
            velocity[frames] += shares[number, frames] * Network().predict(number, [begun], timestep)
        latents = sampler.step(velocity, timestep, latents, return_dict=False, **settings)[0]
    return latents


def wavefront(layout: WindowLayout, sampler: Any, noise: Any, **options: Any) -> Tensor:
    events = ClipSampling(layout, sampler, noise=noise, network=Network(), **options).run()
    return torch.cat([event.latents for event in events if isinstance(event, Finished)])


@pytest.mark.parametrize("name", get_args(Sampler))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_equals_step_by_step(name: Sampler, layout: WindowLayout) -> None:
    sampler = scheduler(name, 7)
    noise = keyed_noise(3, (4, 3, 5), CPU)(range(layout.num_frames))
    found = wavefront(layout, sampler, given_noise(noise, CPU))
    assert torch.equal(found, step_by_step(layout, sampler, noise)) and found.isfinite().all()
    assert found.std() > 0.1, "and is no constant"


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_consistency_samplers_equal_step_by_step(kind: Any, layout: WindowLayout) -> None:
    """The noise that they add after each step is a frame's own: one draw, whatever windows and blocks it lies in."""
    sampler = kind.from_config(PAPER.sampler().config)
    sampler.set_timesteps(4)
    frames, generators = range(layout.num_frames), keyed_generators(5)
    noise = keyed_noise(3, (4, 3, 5), CPU)(frames)
    found = wavefront(layout, sampler, given_noise(noise, CPU), generators=generators)
    assert torch.equal(found, step_by_step(layout, sampler, noise, generator=generators(frames)))
    assert found.isfinite().all() and found.std() > 0.1
    other = wavefront(layout, sampler, given_noise(noise, CPU), generators=keyed_generators(6))
    assert not torch.equal(found, other), "noise is added"


def test_the_sampler_that_was_given_stays_as_it_is() -> None:
    """Each block steps a copy, so the same scheduler serves the next video."""
    layout, sampler = LAYOUTS["open"], scheduler("dpm++", 5)
    noise = keyed_noise(0, (4, 3, 5), CPU)
    assert torch.equal(wavefront(layout, sampler, noise), wavefront(layout, sampler, noise))
    assert sampler.step_index is None and sampler.model_outputs == [None] * len(sampler.model_outputs)


def test_a_frame_has_its_noise_in_every_video() -> None:
    noise = keyed_noise(7, (4, 3, 5), CPU)
    assert torch.equal(noise(range(40))[12:17], noise(range(12, 17)))
    assert not torch.equal(noise(range(1)), noise(range(1, 2)))
    assert not torch.equal(noise(range(1)), keyed_noise(8, (4, 3, 5), CPU)(range(1)))
    many = noise(range(500))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


class Still:
    """Network without motion and without neighbours: what differs between frames is noise."""

    def begin(self, block: int, latents: Tensor, timestep: Tensor) -> Tensor:
        return latents

    def predict(self, window: int, parts: Sequence[Tensor], timestep: Tensor) -> Tensor:
        return torch.zeros_like(torch.cat(list(parts)))


def test_a_frame_has_its_own_noise_in_every_step() -> None:
    def sampled(layout: WindowLayout, seed: int) -> Tensor:
        sampler = DPMSolverMultistepScheduler.from_config(
            PAPER.sampler("dpm++").config, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
        )
        sampler.set_timesteps(4)
        same = torch.ones(1, 4, 6, 5)
        sampling = ClipSampling(
            layout,
            sampler,
            noise=lambda frames: same.repeat(len(frames), 1, 1, 1),
            network=Still(),
            generators=keyed_generators(seed),
        )
        return torch.cat([event.latents for event in sampling.run() if isinstance(event, Finished)])

    short, long = sampled(LAYOUTS["short"], 3), sampled(LAYOUTS["moved last window"], 3)
    flat = short.flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.5, "two frames got the same noise"
    assert torch.equal(short, long[: len(short)]), "a frame's noise depends on the video's length or windows"
    assert not torch.equal(short, sampled(LAYOUTS["short"], 4))


def test_each_step_of_each_block_is_told_and_can_be_changed() -> None:
    layout, sampler = LAYOUTS["open"], scheduler("ddim", 4)
    reported: list[StepDone] = []

    def after(done: StepDone) -> Tensor:
        reported.append(done)
        return torch.full_like(done.latents, 0.25) if done.step == 3 else done.latents

    noise = keyed_noise(0, (4, 3, 5), CPU)
    assert (wavefront(layout, sampler, noise, after_step=after) == 0.25).all()
    for block in layout.blocks:
        of_block = [done for done in reported if done.frames == block.frames]
        assert [done.step for done in of_block] == [0, 1, 2, 3]
        assert [int(done.timestep) for done in of_block] == sampler.timesteps.tolist()
        assert all(len(done.latents) == len(block) for done in of_block)


def test_everything_is_computed_once() -> None:
    """Windows are predicted once in each step, and work on a single block is not repeated for each window."""
    network, layout = Network(), LAYOUTS["three windows over a frame"]
    sampling = ClipSampling(layout, scheduler("ddim", 4), noise=keyed_noise(0, (4, 3, 5), CPU), network=network)
    assert sum(not isinstance(event, Finished) for event in sampling.run()) == sampling.num_predictions
    assert set(network.begun.values()) == {1} and len(network.begun) == 4 * len(layout.blocks)


def test_memory_does_not_grow_with_the_video() -> None:
    """Bytes of a sampling's tensors while frames are handed out do not grow with ten times as many frames."""

    def most(frames: int) -> int:
        layout = WindowLayout(windows=open_windows(frames, 6, 2))
        sampling = ClipSampling(
            layout, scheduler("unipc", 4), noise=keyed_noise(0, (4, 32, 32), CPU), network=Network()
        )
        measured = {len(layout.blocks) // 2, len(layout.blocks) // 2 + 1}  # a frame or two of both kinds of blocks
        gc.collect()
        others = _tensors()  # held, so that none is freed and no tensor of the sampling gets its id
        known = {id(tensor) for tensor in others}
        return max(
            sum(tensor.nbytes for tensor in _tensors() if id(tensor) not in known)
            for event in sampling.run()
            if isinstance(event, Finished) and event.block in measured
        )

    short, long = most(60), most(600)
    assert 0 < long <= 1.05 * short


def _tensors() -> list[Tensor]:
    # `issubclass(type(…))`, because `isinstance` calls into proxy objects of other tests.
    return [value for value in gc.get_objects() if issubclass(type(value), Tensor)]


def test_the_published_schedule_gives_the_published_steps() -> None:
    """Sampling with COMPAT_INFER equals the plain loop too; its first step is from pure noise."""
    sampler: Any = COMPAT_INFER.sampler("ddim")
    sampler.set_timesteps(4)
    layout = LAYOUTS["closed"]
    noise = keyed_noise(3, (4, 3, 5), CPU)(range(layout.num_frames))
    assert sampler.timesteps.tolist() == [999, 749, 499, 249]
    assert torch.equal(wavefront(layout, sampler, given_noise(noise, CPU)), step_by_step(layout, sampler, noise))
