"""Normalisation inside the PoseGuider: of each frame for itself, or as the published weights were trained."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

Normalisation = Literal["frame", "published", "trained", "running"]
"""How the PoseGuider normalises, and which numbers it takes guidance images in.

- `frame`: group norm of each frame for itself. A frame's features do not depend on its neighbours, so they can be
  computed once, in any order.
- `published`: what AniPortrait's shipped inference computes: batch norm with the statistics of the frames at hand, in
  training and in inference, on pixel values 2 v - 1 of v in 0 … 255 (sic).
- `trained`: what AniPortrait's training computes: the same statistics, on images in [-1, 1].
- `running`: batch norm with its running statistics outside of training, on images in [-1, 1].
"""
NORMALISATIONS = get_args(Normalisation)

_CHANNELS_PER_GROUP = 4
_MAX_GROUPS = 32


class WindowNorm(nn.BatchNorm2d):
    """Batch norm that takes the statistics of what it is given, also outside of training.

    Running statistics follow in training only, so a call in evaluation leaves nothing behind.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[N, C, h, w]`: statistics over N, h and w."""
        if self.training:
            return super().forward(input)
        # PyTorch's CPU kernel sums channels-last input in float32, which costs up to 1 % of the result.
        return F.batch_norm(input.contiguous(), None, None, self.weight, self.bias, training=True, eps=self.eps)


def make_norm(normalisation: Normalisation, channels: int) -> nn.Module:
    """The normalisation of `channels` maps.

    `frame` groups four maps or more, at most 32 groups; the three maps of the first layer are one group. (A group for
    each map would lose how much of a picture the map covers.)
    """
    if normalisation == "frame":
        groups = min(_MAX_GROUPS, max(1, channels // _CHANNELS_PER_GROUP))
        return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)
    return nn.BatchNorm2d(channels) if normalisation == "running" else WindowNorm(channels)
