"""The network that encodes the reference portrait once and hands its features to the denoiser.

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
    """Stable Diffusion 1.5's UNet without an output head, whose results are the features of its transformers.

    After ReferenceNet of Animate Anyone (arXiv 2311.17117). Names and shapes of the parameters are those of `diffusers`
    and of AniPortrait's published `reference_unet.pth`. The defaults are Stable Diffusion 1.5's sizes.

    Args:
        in_channels: Channels of the latents.
        block_out_channels: Channels of each level, from the finest resolution.
        layers_per_block: Layers of a level on the way down; a level on the way up has one more.
        attention_levels: Whether each level has transformers.
        num_attention_heads: Heads of every attention.
        cross_attention_dim: Width D of the image token.
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
        # The denoiser must have the same levels and layers: its transformers find their references by name.
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
        """Features of reference portraits, at timestep 0 because they carry no noise.

        Args:
            latents: Clean latents of the portraits, `[B, C, h, w]`, scaled as the denoiser's.
            token: Image tokens of the same portraits, `[B, 1, D]`.
            fold: Whether to add the attention to the token as a constant, see `SpatialTransformer.forward`.

        Returns:
            Features `[B, L, C]` by name of the transformer block; the denoiser has blocks of the same names.
        """
        # A portrait is a sample of one frame. The hidden state of the last level is of no use here.
        time = self._embed_time(0, len(latents), 1)
        return self._forward(latents, Conditioning(time, token, num_frames=1, fold=fold))[1]

    def freeze_tail(self) -> None:
        """Exclude the last level on the way up from training, as published: much of it has no effect on any feature."""
        self.up_blocks[-1].requires_grad_(False)

    @torch.no_grad()
    def load_denoiser(self, state: dict[str, Tensor]) -> None:
        """Copy the weights of a denoiser or of Stable Diffusion's UNet, without their output head.

        Args:
            state: `state_dict` of that network; tensors that this network lacks are ignored.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        wanted = self.state_dict()
        wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
        if wrong:
            raise ValueError(f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}")
        self.load_state_dict({key: state[key] for key in wanted})
