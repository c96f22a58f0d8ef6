"""Random numbers of Lmk2Video's samples: drawn where samples are read, so that a step on a GPU waits for none.

An item has them as fields, so they are pinned and moved with the batch. They take 4 · (2 F + 1) · C · h · w bytes: 0.2
MB for a single frame of 512 x 512 pixels, 2.2 MB for a window of 16, next to 1.6 and 13 MB of guidance images.

Dimensions: B samples, F frames of a window; C, h, w channels and size of latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from talkinghead import rng
from talkinghead.models.noise_schedule import PAPER, draw_noise
from train.lmk2video.config import Lmk2VideoConfig
from train.task import Batch


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers of a batch, on its device."""

    timesteps: Tensor
    """Timestep of each sample, `[B]` int64, the same for all its frames."""
    noise: Tensor
    """Noise that is added to the target's latents, `[B, F, C, h, w]`."""
    target: Tensor
    """Standard normal, `[B, F, C, h, w]`: which latents of the VAE's distribution the target has."""
    reference: Tensor
    """Standard normal, `[B, C, h, w]`: which latents of the VAE's distribution the reference has."""
    without_reference: Tensor
    """Samples without the features of the reference, `[B]` bool."""
    without_token: Tensor
    """Samples without the image token, `[B]` bool."""

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """What `WindowDraws` drew for the samples of a batch."""
        return cls(
            timesteps=batch["timestep"],
            noise=batch["noise"],
            target=batch["target_draw"],
            reference=batch["reference_draw"],
            without_reference=batch["without_reference"],
            without_token=batch["without_token"],
        )


@dataclass(frozen=True, kw_only=True)
class WindowDraws:
    """Drawing of a sample's random numbers, each a function of (seed, purpose, slot); see `shards.drawn.Draw`.

    An item that has a `timestep` is measured rather than trained on: it keeps that and all conditions.
    """

    config: Lmk2VideoConfig
    """Noise offset and shares of dropped conditions."""
    seed: int
    """Seed of the run."""
    shape: tuple[int, int, int, int]
    """Shape of the latents of a window, (F, C, h, w)."""

    def __call__(self, item: Batch) -> dict[str, Any]:
        """Fields of an item; `Draws` says what they are."""
        config, seed, slot = self.config, self.seed, int(item["slot"])
        latents = _normal(seed, slot, self.shape)
        without_reference, without_token = _dropped(config, seed, slot)
        measured = "timestep" in item
        return {
            "timestep": item["timestep"] if measured else PAPER.draw_timestep(seed, (slot,)),
            "noise": draw_noise(seed, (slot,), self.shape, offset=config.noise_offset),
            "target_draw": latents[:-1],
            "reference_draw": latents[-1],
            "without_reference": without_reference and not measured,
            "without_token": without_token and not measured,
        }


def _dropped(config: Lmk2VideoConfig, seed: int, slot: int) -> tuple[bool, bool]:
    """Whether a sample loses the features of the reference, and the image token."""
    # One number decides all three kinds: its range is cut into both, reference only, token only, neither. In float32,
    # as it always was.
    chance = np.float32(rng.uniform(seed, "conditioning dropout", slot))
    bounds = np.cumsum([config.drop_both, config.drop_reference, config.drop_token]).astype(np.float32)
    both, reference, token = chance < bounds
    return bool(reference), bool(both or (token and not reference))


def _normal(seed: int, slot: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers of the target and, last, of the reference, `[F + 1, C, h, w]` float32."""
    frames, *others = shape
    # The purpose is part of the seed: with another name the numbers of all runs would change.
    draws = rng.generator(seed, "codec noise", slot)
    return torch.from_numpy(draws.standard_normal((frames + 1, *others), dtype="float32"))
