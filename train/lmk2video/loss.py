"""Loss of Lmk2Video for each sample on its own: the error of a predicted velocity.

Dimensions: B samples, F frames of a window; C, h, w channels and size of latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from talkinghead.models.noise_schedule import PAPER
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.draws import Draws
from train.task import Losses, PartialFigures

BUCKETS = 4
"""Number of equal ranges of timesteps whose losses are logged by themselves."""


def velocity_loss(
    predicted: Tensor, velocity: Tensor, timesteps: Tensor, mask: Tensor, region: Tensor | None, gamma: float | None
) -> Losses:
    """Mean squared error over channels, positions and frames, weighted by min-SNR.

    Args:
        predicted: Predicted velocity, `[B, F, C, h, w]`.
        velocity: True velocity, `[B, F, C, h, w]`.
        timesteps: Timestep of each sample, `[B]`.
        mask: Frames that count, `[B, F]` bool. A sample without any has the loss 0.
        region: Weights of the positions, `[B, F, h, w]`; None: all are equal. Their mean does not matter.
        gamma: Gamma of min-SNR weighting (Hang et al., arXiv 2303.09556); None: every timestep weighs the same.

    Returns:
        `loss` and the unweighted `velocity_mse`, `[B]` each.
    """
    error = (predicted.float() - velocity).square().mean(dim=2)  # [B, F, h, w]
    counts = mask[..., None, None].expand_as(error).to(error.dtype)
    plain = _mean(error, counts)
    loss = plain if region is None else _mean(error, counts * region)
    # A factor of the whole sample, since all its frames have the same timestep.
    weight = torch.ones_like(loss) if gamma is None else PAPER.min_snr_weight(timesteps, gamma)
    return {"loss": weight * loss, "velocity_mse": plain.detach()}


def loss_figures(config: Lmk2VideoConfig, loss: Tensor, drawn: Draws) -> PartialFigures:
    """Loss by range of timesteps, and by the conditions that a sample has lost.

    Args:
        config: Shares of the samples that lose conditions; those that none loses have no figure.
        loss: Loss of each sample, `[B]`.
        drawn: Timesteps and lost conditions.
    """
    size = PAPER.num_train_timesteps // BUCKETS
    found: PartialFigures = {}
    for first in range(0, BUCKETS * size, size):
        # Padded, so that the names are in order.
        found[f"loss/t{first:03d}-{first + size - 1:03d}"] = loss, drawn.timesteps // size == first // size
    reference, token = drawn.without_reference, drawn.without_token
    lost = {
        "without_both": (config.drop_both, reference & token),
        "without_reference": (config.drop_reference, reference & ~token),
        "without_token": (config.drop_token, token & ~reference),
    }
    kinds = {name: of for name, (share, of) in lost.items() if share}
    if kinds:
        kinds["with_all"] = ~(reference | token)
    return found | {f"loss/{name}": (loss, of) for name, of in kinds.items()}


def even_timestep(number: int, count: int) -> int:
    """Timestep of one of so many samples that are spread evenly over all timesteps.

    Args:
        number: Number of the sample, from 0.
        count: Number of samples.
    """
    return int((number + 0.5) / count * PAPER.num_train_timesteps)


def _mean(error: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of each sample, `[B, F, h, w]` and weights → `[B]`; 0 where all weights are 0."""
    total = weights.sum(dim=(1, 2, 3))
    return (error * weights).sum(dim=(1, 2, 3)) / total.clamp(min=torch.finfo(total.dtype).tiny)
