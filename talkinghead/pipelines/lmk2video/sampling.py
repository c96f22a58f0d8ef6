"""From noise to latents: a sampler's steps over a video of any length, in windows, with memory for few frames.

Letters of shapes: F frames of the video, n frames of a window or block, C channels, h and w height and width of
latents.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from talkinghead import rng
from talkinghead.pipelines.lmk2video.context_windows import Advance, Block, Predict, WindowLayout, plan

Noise = Callable[[range], Tensor]
"""Frames → their first noise, `[n, C, h, w]` float32."""
Generators = Callable[[range], list[torch.Generator]]
"""Frames → a new generator for each, of the noise that some samplers add in every step."""


class WindowNetwork(Protocol):
    """What predicts windows. A part of its work may be done block by block, and so once for all windows over a block.

    `begin` is asked once for each block and step, `predict` once for each window and step.
    """

    def begin(self, block: int, latents: Tensor, timestep: Tensor) -> Any:
        """Begin with a block: its noisy latents `[n, C, h, w]` float32 → whatever `predict` wants of it."""
        ...

    def predict(self, window: int, parts: Sequence[Any], timestep: Tensor) -> Tensor:
        """What `begin` made of each block of a window, in order → predicted velocity of the window, `[n, C, h, w]`."""
        ...


class StepDone(NamedTuple):
    """A block of frames has done a step."""

    step: int
    """From 0."""
    timestep: Tensor
    frames: range
    latents: Tensor
    """`[n, C, h, w]` float32, of these frames, after the step."""


AfterStep = Callable[[StepDone], Tensor]
"""Told of each step of each block; returns the latents to go on with."""


class Finished(NamedTuple):
    """A block of frames that has done all steps."""

    block: int
    frames: range
    latents: Tensor
    """`[n, C, h, w]` float32."""


@dataclass
class _AtWork:
    """A block between its first prediction and its last step."""

    latents: Tensor
    scheduler: Any
    """The block's own: samplers of several steps keep what they predicted before."""
    settings: dict[str, Any]
    """Further arguments of `scheduler.step`: the frames' generators, where the sampler adds noise."""
    begun: Any = None
    """What the network made of the latents at the step at hand; None: nothing yet."""
    predictions: dict[int, Tensor] = field(default_factory=dict)
    """Window → what it says of these frames at the step at hand."""


class ClipSampling:
    """One run of a sampler over a video.

    The sampler works on each block of frames for itself, with the same numbers as on all of them at once; see
    `context_windows`. Latents and their arithmetic are float32, whatever the precision of the networks.

    Args:
        layout: How the windows lie.
        scheduler: A `diffusers` sampler on which `set_timesteps` was called; it is copied and stays as it is.
        noise: The first noise of any frames; asked for once.
        network: The network.
        generators: Generators for samplers that add noise in every step; None: those draw from PyTorch's global state.
        after_step: See `AfterStep`; None: nobody is told.
    """

    def __init__(
        self,
        layout: WindowLayout,
        scheduler: SchedulerMixin,
        *,
        noise: Noise,
        network: WindowNetwork,
        generators: Generators | None = None,
        after_step: AfterStep | None = None,
    ) -> None:
        self._layout = layout
        self._scheduler: Any = scheduler
        self._timesteps: Tensor = self._scheduler.timesteps
        self._noise = noise
        self._network = network
        draws = "generator" in inspect.signature(self._scheduler.step).parameters
        self._generators = generators if draws else None
        self._after_step = after_step
        self._work: dict[int, _AtWork] = {}

    @property
    def num_predictions(self) -> int:
        """How often a window is predicted in all."""
        return len(self._layout.windows) * len(self._timesteps)

    def run(self) -> Iterator[Finished | Predict]:
        """Sample: each prediction is told when it is made, and each block handed out when it is finished, in order."""
        for action in plan(self._layout, len(self._timesteps)):
            if isinstance(action, Predict):
                self._predict_window(action.window, self._timesteps[action.step])
                yield action
            elif isinstance(action, Advance):
                self._advance(action.block, action.step)
            else:
                frames = self._layout.blocks[action.block].frames
                yield Finished(action.block, frames, self._work.pop(action.block).latents)

    def _predict_window(self, window: int, timestep: Tensor) -> None:
        blocks = [self._begun(number, timestep) for number in self._layout.window_blocks[window]]
        velocity = self._network.predict(window, [block.begun for block in blocks], timestep)
        parts = velocity.split([len(block.latents) for block in blocks])
        for block, part in zip(blocks, parts, strict=True):
            block.predictions[window] = part

    def _begun(self, number: int, timestep: Tensor) -> _AtWork:
        block = self._at_work(number)
        if block.begun is None:
            scaled = block.scheduler.scale_model_input(block.latents, timestep)
            block.begun = self._network.begin(number, scaled, timestep)
        return block

    def _at_work(self, number: int) -> _AtWork:
        if number not in self._work:
            block = self._layout.blocks[number]
            noise = self._noise(block.frames) * self._scheduler.init_noise_sigma
            settings = {} if self._generators is None else {"generator": self._generators(block.frames)}
            self._work[number] = _AtWork(noise, copy.deepcopy(self._scheduler), settings)
        return self._work[number]

    def _advance(self, number: int, step: int) -> None:
        at_work = self._work[number]
        velocity = _blended(self._layout, number, at_work.predictions)
        at_work.predictions.clear()
        at_work.begun = None
        timestep = self._timesteps[step]
        latents = at_work.scheduler.step(velocity, timestep, at_work.latents, return_dict=False, **at_work.settings)[0]
        if self._after_step is not None:
            latents = self._after_step(StepDone(step, timestep, self._layout.blocks[number].frames, latents))
        at_work.latents = latents


def _blended(layout: WindowLayout, number: int, predictions: dict[int, Tensor]) -> Tensor:
    """What the windows over a block say of it together, `[n, C, h, w]`."""
    block: Block = layout.blocks[number]
    if len(block.windows) == 1:
        return predictions[block.windows[0]]
    first = predictions[block.windows[0]]
    shares = torch.from_numpy(layout.shares(number)).to(first.device)[:, :, None, None, None]
    total = torch.zeros_like(first)
    for share, window in zip(shares, block.windows, strict=True):
        total += share * predictions[window]
    return total


def keyed_noise(seed: int, shape: tuple[int, int, int], device: torch.device) -> Noise:
    """Noise of which each frame's is a function of (seed, frame): the same on every device and for every length.

    Args:
        seed: Seed of the video.
        shape: (C, h, w) of a frame's latents.
        device: Where it is wanted.
    """

    def draw(frames: range) -> Tensor:
        draws = [rng.generator(seed, "first noise", frame).standard_normal(shape, dtype="float32") for frame in frames]
        return torch.stack([torch.from_numpy(draw) for draw in draws]).to(device)

    return draw


def keyed_generators(seed: int) -> Generators:
    """Generators of which each frame's is a function of (seed, frame), as with `keyed_noise`."""

    def make(frames: range) -> list[torch.Generator]:
        keys = [rng.key_bits(seed, "noise of steps", frame) for frame in frames]
        return [torch.Generator().manual_seed(key % 2**63) for key in keys]

    return make


def given_noise(latents: Tensor, device: torch.device) -> Noise:
    """Noise from outside: `[F, C, h, w]`, of unit variance."""
    return lambda frames: latents[frames.start : frames.stop].to(device, torch.float32)
