"""The error of a predicted velocity, each sample's for itself."""

from __future__ import annotations

import torch
from torch import Tensor

from talkinghead.models.noise_schedule import PAPER
from train.task import Losses


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
        gamma: Of min-SNR weighting (arXiv 2303.09556); None: every timestep weighs the same.

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
