"""The network that looks at the reference portrait once and hands its features to the denoiser.

Letters of shapes: B references, C channels, h and w height and width of the latents, L tokens of a transformer in
row-major order, D width of the image token. The layers are called in `unet.UNetTrunk`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from talkinghead.models.lmk2video.unet import Conditioning, UNetShape, UNetTrunk


class ReferenceNet(UNetTrunk):
    """Stable Diffusion 1.5's UNet without an output head: the features of its transformers are what it is for.

    After ReferenceNet of Animate Anyone (arXiv 2311.17117). Names and shapes of the parameters are those of `diffusers`
    and of AniPortrait's published `reference_unet.pth`. The defaults are Stable Diffusion 1.5's sizes.

    Args:
        in_channels: Channels of the latents.
        block_out_channels: Channels of each level, from the finest.
        layers_per_block: Layers of a level on the way down.
        attention_levels: Which levels have transformers.
        num_attention_heads: Heads of every attention.
        cross_attention_dim: D.
        norm_num_groups: Groups of every group norm.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] = (True, True, True, False),
        num_attention_heads: int = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        self._build(
            UNetShape(
                in_channels=in_channels,
                block_out_channels=block_out_channels,
                layers_per_block=layers_per_block,
                attention_levels=attention_levels,
                num_attention_heads=num_attention_heads,
                cross_attention_dim=cross_attention_dim,
                norm_num_groups=norm_num_groups,
                motion_heads=num_attention_heads,
            )
        )

    def forward(self, latents: Tensor, token: Tensor, *, fold: bool = False) -> dict[str, Tensor]:
        """Features of reference portraits, at timestep 0: they carry no noise.

        Args:
            latents: `[B, C, h, w]`, scaled as the denoiser's.
            token: `[B, 1, D]` of the same images.
            fold: See `SpatialTransformer.forward`.

        Returns:
            Name of each transformer block (the denoiser has blocks of the same names) → `[B, L, C]`.
        """
        time = self._embed_time(0, len(latents), 1)
        return self._forward(latents, Conditioning(time, token, num_frames=1, fold=fold))[1]

    def freeze_tail(self) -> None:
        """Do not train the last level on the way up, as published: much of it has no effect on any feature."""
        self.up_blocks[-1].requires_grad_(False)

    @torch.no_grad()
    def load_denoiser(self, state: dict[str, Tensor]) -> None:
        """Begin with the weights of a denoiser or of Stable Diffusion's UNet, which has an output head too.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        wanted = self.state_dict()
        wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
        if wrong:
            raise ValueError(f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}")
        self.load_state_dict({key: state[key] for key in wanted})
