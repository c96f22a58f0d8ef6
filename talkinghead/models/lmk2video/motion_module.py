"""Attention over time, after AnimateDiff (arXiv 2307.04725), at each position of the picture for itself."""

from __future__ import annotations

from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn


class MotionModule(AnimateDiffTransformer3D):
    """AnimateDiff's motion module, stock weights and names, which normalises each frame for itself.

    The stock module takes the statistics of its group norm over all frames of the window; AnimateDiff's later versions,
    and the weights trained from them, take them in each frame. Its last layer starts at zero, so that a new module
    changes nothing.

    Args:
        channels: C of the pictures.
        heads: Of both attentions.
        max_frames: Frames that have a position: the longest window.
        norm_groups: Of the group norm in front.
    """

    def __init__(self, channels: int, heads: int, max_frames: int, norm_groups: int) -> None:
        super().__init__(
            num_attention_heads=heads,
            attention_head_dim=channels // heads,
            in_channels=channels,
            norm_num_groups=norm_groups,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=max_frames,
        )
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, hidden: Tensor, num_frames: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`[B * F, C, h, w]`, the F frames of a sample one after the other → the same shape."""
        count, channels, height, width = hidden.shape
        # Contiguous: where only the norm's parameters want a gradient (everything in front is frozen), PyTorch 2.13's
        # CPU kernel crashes on channels-last input.
        series = self.norm(hidden.contiguous()).view(-1, num_frames, channels, height, width).permute(0, 3, 4, 1, 2)
        series = self.proj_in(series.reshape(-1, num_frames, channels))
        for block in self.transformer_blocks:
            series = block(series)
        series = self.proj_out(series).view(-1, height, width, num_frames, channels)
        return hidden + series.permute(0, 3, 4, 1, 2).reshape(count, channels, height, width)
