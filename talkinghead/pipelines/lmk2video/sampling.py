"""Sampling from noise to latents, for a video of any length, in windows, with memory for few frames.

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
"""Function from frames to their first noise, float32 `[n, C, h, w]`."""
Generators = Callable[[range], list[torch.Generator]]
"""Function from frames to a new generator for each, for the noise that some samplers add in every step."""


class WindowNetwork(Protocol):
    """Network that predicts the velocity of windows.

    A part of its work may be done block by block, and so once for all windows over a block: `begin` is called once for
    each block and step, `predict` once for each window and step.
    """

    def begin(self, block: int, latents: Tensor, timestep: Tensor) -> Any:
        """Intermediate result for a block, which `predict` gets for each of the window's blocks.

        Args:
            block: Number of the block.
            latents: Noisy latents of the block, float32 `[n, C, h, w]`.
            timestep: Timestep of the sampler, a tensor of one number.
        """
        ...

    def predict(self, window: int, parts: Sequence[Any], timestep: Tensor) -> Tensor:
        """Predicted velocity of a window, `[n, C, h, w]`.

        Args:
            window: Number of the window.
            parts: Results of `begin` for each block of the window, in order.
            timestep: Timestep of the sampler, a tensor of one number.
        """
        ...


class StepDone(NamedTuple):
    """Step that a block of frames has done."""

    step: int
    """Number of the step, from 0."""
    timestep: Tensor
    """Timestep of the sampler at this step."""
    frames: range
    """Numbers of the frames."""
    latents: Tensor
    """Latents of these frames after the step, float32 `[n, C, h, w]`."""


AfterStep = Callable[[StepDone], Tensor]
"""Function called after each step of each block; returns the latents with which sampling continues."""


class Finished(NamedTuple):
    """Block of frames that has done all steps."""

    block: int
    """Number of the block."""
    frames: range
    """Numbers of the frames."""
    latents: Tensor
    """Final latents of these frames, float32 `[n, C, h, w]`."""


@dataclass
class _AtWork:
    """State of a block between its first prediction and its last step."""

    latents: Tensor
    """Latents after the steps so far, float32 `[n, C, h, w]`."""
    scheduler: Any
    """Scheduler of this block alone: multistep samplers keep earlier predictions."""
    settings: dict[str, Any]
    """Further arguments of `scheduler.step`: the frames' generators, where the sampler adds noise."""
    begun: Any = None
    """Result of the network's `begin` at the present step; None: not computed yet."""
    predictions: dict[int, Tensor] = field(default_factory=dict)
    """Velocities of these frames at the present step, `[n, C, h, w]` each, by number of the window."""


class ClipSampling:
    """Sampling of one video.

    The sampler works on each block of frames for itself, with the same result as on all of them at once; see
    `context_windows`. Latents and their arithmetic are float32, whatever the precision of the networks.

    Args:
        layout: Layout of the windows.
        scheduler: Sampler of `diffusers` on which `set_timesteps` was called; it is copied and stays as it is.
        noise: First noise of any frames; called once for each block.
        network: Network that predicts the windows.
        generators: Generators for samplers that add noise in every step; None: those draw from PyTorch's global state.
        after_step: Function called after each step of each block; None: none.
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
        # Only samplers that add noise in every step take a generator.
        draws = "generator" in inspect.signature(self._scheduler.step).parameters
        self._generators = generators if draws else None
        self._after_step = after_step
        self._work: dict[int, _AtWork] = {}

    @property
    def num_predictions(self) -> int:
        """Total number of predictions, over all windows and steps."""
        return len(self._layout.windows) * len(self._timesteps)

    def run(self) -> Iterator[Finished | Predict]:
        """Predictions as they are made (for progress), and blocks as they are finished, in order of their frames."""
        # The plan ensures that the blocks of a predicted window have all done the same steps, and that a block that
        # advances has a prediction of every window over it.
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
        velocity = self._network.predict(window, [block.begun for block in blocks], timestep)  # [n, C, h, w]
        # A window consists of whole blocks, so its prediction divides into theirs.
        parts = velocity.split([len(block.latents) for block in blocks])
        for block, part in zip(blocks, parts, strict=True):
            block.predictions[window] = part

    def _begun(self, number: int, timestep: Tensor) -> _AtWork:
        """State of a block after the network's `begin` at this step, which the first of the windows over it calls."""
        block = self._at_work(number)
        if block.begun is None:
            scaled = block.scheduler.scale_model_input(block.latents, timestep)
            block.begun = self._network.begin(number, scaled, timestep)
        return block

    def _at_work(self, number: int) -> _AtWork:
        """State of a block, made at its first prediction."""
        if number not in self._work:
            block = self._layout.blocks[number]
            # Some samplers (Euler) start from noise of another scale. A copy of the scheduler for each block, because
            # multistep samplers keep earlier predictions and count their steps.
            noise = self._noise(block.frames) * self._scheduler.init_noise_sigma
            settings = {} if self._generators is None else {"generator": self._generators(block.frames)}
            self._work[number] = _AtWork(noise, copy.deepcopy(self._scheduler), settings)
        return self._work[number]

    def _advance(self, number: int, step: int) -> None:
        """Let a block do a step, for which all windows over it are predicted."""
        at_work = self._work[number]
        velocity = _blended(self._layout, number, at_work.predictions)
        # Freed before the step: they are the largest tensors of a block in progress.
        at_work.predictions.clear()
        at_work.begun = None
        timestep = self._timesteps[step]
        latents = at_work.scheduler.step(velocity, timestep, at_work.latents, return_dict=False, **at_work.settings)[0]
        if self._after_step is not None:
            latents = self._after_step(StepDone(step, timestep, self._layout.blocks[number].frames, latents))
        at_work.latents = latents


def _blended(layout: WindowLayout, number: int, predictions: dict[int, Tensor]) -> Tensor:
    """Velocity of a block, blended from the predictions of the windows over it: `[n, C, h, w]`."""
    block: Block = layout.blocks[number]
    if len(block.windows) == 1:
        return predictions[block.windows[0]]
    # Weights [W, n, 1, 1, 1]. Summed in the order of the windows, so that rounding does not depend on which came first.
    first = predictions[block.windows[0]]
    shares = torch.from_numpy(layout.shares(number)).to(first.device)[:, :, None, None, None]
    total = torch.zeros_like(first)
    for share, window in zip(shares, block.windows, strict=True):
        total += share * predictions[window]
    return total


def keyed_noise(seed: int, shape: tuple[int, int, int], device: torch.device) -> Noise:
    """Noise that is a function of seed and frame, so that it is the same on every device and for every length.

    Args:
        seed: Seed of the video.
        shape: Shape (C, h, w) of a frame's latents.
        device: Device of the result.
    """

    def draw(frames: range) -> Tensor:
        # NumPy's generator on the CPU: PyTorch's draw other numbers on every kind of device.
        draws = [rng.generator(seed, "first noise", frame).standard_normal(shape, dtype="float32") for frame in frames]
        return torch.stack([torch.from_numpy(draw) for draw in draws]).to(device)

    return draw


def keyed_generators(seed: int) -> Generators:
    """Generators that are functions of seed and frame, as with `keyed_noise`."""

    def make(frames: range) -> list[torch.Generator]:
        keys = [rng.key_bits(seed, "noise of steps", frame) for frame in frames]
        return [torch.Generator().manual_seed(key % 2**63) for key in keys]

    return make


def given_noise(latents: Tensor, device: torch.device) -> Noise:
    """Noise from given values.

    Args:
        latents: Noise of the whole video, `[F, C, h, w]` of unit variance.
        device: Device of the result.
    """
    return lambda frames: latents[frames.start : frames.stop].to(device, torch.float32)
