"""The loss of Lmk2Video, each sample's for itself: what is random in it, and how far a predicted velocity is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead import rng
from talkinghead.models.noise_schedule import PAPER, draw_noise
from train.lmk2video.config import Lmk2VideoConfig
from train.task import Losses


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers of a batch, on its device, each a function of (seed, purpose, slot)."""

    timesteps: Tensor
    """`[B]` int64."""
    noise: Tensor
    """`[B, F, C, h, w]`."""
    target: Tensor
    """`[B, F, C, h, w]`: which latents of the VAE's distribution, for the target."""
    reference: Tensor
    """`[B, C, h, w]`: the same for the reference."""
    without_reference: Tensor
    """`[B]` bool."""
    without_token: Tensor
    """`[B]` bool."""


def draw(config: Lmk2VideoConfig, seed: int, slots: Tensor, shape: Sequence[int]) -> Draws:
    """Draw for a batch.

    Args:
        config: Noise offset and shares of dropped conditions.
        seed: Seed of the run.
        slots: `[B]`.
        shape: (F, C, h, w) of a sample's latents.
    """
    numbers, device = slots.tolist(), slots.device
    keys = [(slot,) for slot in numbers]
    latent = torch.stack([_normal(seed, slot, shape) for slot in numbers])
    chance = torch.tensor([rng.uniform(seed, "conditioning dropout", slot) for slot in numbers])
    both = chance < config.drop_both
    reference = chance < config.drop_both + config.drop_reference
    token = ~reference & (chance < config.drop_both + config.drop_reference + config.drop_token)
    return Draws(
        timesteps=PAPER.draw_timesteps(seed, keys).to(device),
        noise=draw_noise(seed, keys, shape, offset=config.noise_offset).to(device),
        target=latent[:, :-1].to(device),
        reference=latent[:, -1].to(device),
        without_reference=reference.to(device),
        without_token=(both | token).to(device),
    )


def _normal(seed: int, slot: int, shape: Sequence[int]) -> Tensor:
    frames, *others = shape
    draws = rng.generator(seed, "codec noise", slot)
    return torch.from_numpy(draws.standard_normal((frames + 1, *others), dtype="float32"))


def velocity_loss(
    predicted: Tensor, velocity: Tensor, timesteps: Tensor, mask: Tensor, region: Tensor | None, gamma: float | None
) -> Losses:
    """Mean squared error over channels, positions and frames, weighted by min-SNR.

    Args:
        predicted: `[B, F, C, h, w]`.
        velocity: The same, as it should be.
        timesteps: `[B]`.
        mask: `[B, F]` bool: frames that count. A sample of which none counts has no loss.
        region: `[B, F, h, w]` weights of the positions; None: all alike. Their mean does not matter.
        gamma: Gamma of min-SNR weighting (arXiv 2303.09556); None: every timestep weighs the same.

    Returns:
        `loss` and the unweighted `velocity_mse`, `[B]` each.
    """
    error = (predicted.float() - velocity).square().mean(dim=2)
    counts = mask[..., None, None].expand_as(error).to(error.dtype)
    plain = _mean(error, counts)
    loss = plain if region is None else _mean(error, counts * region)
    weight = torch.ones_like(loss) if gamma is None else PAPER.min_snr_weight(timesteps, gamma)
    return {"loss": weight * loss, "velocity_mse": plain.detach()}


def _mean(error: Tensor, weights: Tensor) -> Tensor:
    """`[B, F, h, w]` and weights → `[B]`."""
    total = weights.sum(dim=(1, 2, 3))
    return (error * weights).sum(dim=(1, 2, 3)) / total.clamp(min=torch.finfo(total.dtype).tiny)
