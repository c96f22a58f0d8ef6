"""Means over the frames that count, each sample's for itself."""

from __future__ import annotations

import torch


def frame_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the frames that count, `[B, F]` → `[B]`; 0 for a sample without any.

    Args:
        values: `[B, F]`.
        mask: `[B, F]` bool.
    """
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def frame_steps(error: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of the error from frame to frame, which is the error of the velocity: `[B, F - 1, …]`, and which count."""
    return error[:, 1:] - error[:, :-1], mask[:, 1:] & mask[:, :-1]
