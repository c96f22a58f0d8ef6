"""The UNet's transformer over the positions of one picture, with a reference and a picture token."""

from __future__ import annotations

from typing import Any, cast

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from talkinghead.models.reference_attention import KeyValue, ReferenceAttention, mix_heads, project


class SpatialTransformer(Transformer2DModel):
    """Stable Diffusion 1.5's transformer (stock weights and names) whose block is given a reference and returns one.

    Args:
        channels: C of the pictures.
        heads: Of both attentions.
        cross_attention_dim: Width of the picture token.
        norm_groups: Of the group norm in front.
    """

    def __init__(self, channels: int, heads: int, cross_attention_dim: int, norm_groups: int) -> None:
        super().__init__(
            num_attention_heads=heads,
            attention_head_dim=channels // heads,
            in_channels=channels,
            num_layers=1,
            norm_num_groups=norm_groups,
            cross_attention_dim=cross_attention_dim,
        )
        # The stock annotation lists the processors that come with diffusers.
        self.block.attn1.set_processor(cast(Any, ReferenceAttention()))

    @property
    def block(self) -> BasicTransformerBlock:
        """The only transformer block."""
        return cast(BasicTransformerBlock, self.transformer_blocks[0])

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden: Tensor,
        token: Tensor,
        reference: Tensor | KeyValue | None = None,
        dropped: Tensor | None = None,
        fold: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Transform pictures, each for itself.

        Args:
            hidden: `[B * F, C, h, w]`, the frames of a sample one after the other.
            token: `[B, 1, D]` of the reference picture.
            reference: Feature `[B, R, C]` of the same block in the reference network, or its keys and values.
            dropped: `[B]` bool, samples that do without the reference.
            fold: Add the attention to the token as the constant that it is. A softmax over one token is 1, so each
                position receives `to_out(to_v(token))`, whatever the query: equal to rounding, and the queries and
                keys of that attention, and the norm before it, are not used (in training: receive no gradient).

        Returns:
            `[B * F, C, h, w]`, and the block's feature `[B * F, h * w, C]` for other networks: what its self-attention
            sees.
        """
        count, channels, height, width = hidden.shape
        block = self.block
        tokens = cast(nn.Conv2d, self.proj_in)(self.norm(hidden)).flatten(2).transpose(1, 2)
        feature = block.norm1(tokens)
        tokens = tokens + block.attn1(feature, reference=reference, dropped=dropped)
        tokens = tokens + self._picture(tokens, token, count // len(token), fold)
        tokens = tokens + block.ff(cast(nn.LayerNorm, block.norm3)(tokens))
        pictures = tokens.transpose(1, 2).reshape(count, channels, height, width)
        return hidden + self.proj_out(pictures), feature

    def project(self, feature: Tensor) -> KeyValue:
        """The keys and values of a reference's feature `[B, R, C]`, to be given instead of it."""
        return project(self.block.attn1, feature)

    def _picture(self, tokens: Tensor, token: Tensor, num_frames: int, fold: bool) -> Tensor:
        """What the picture token adds: `[B * F, L, C]`, or `[B * F, 1, C]` where it is folded."""
        attn, norm = self.block.attn2, self.block.norm2
        assert attn is not None and norm is not None
        if fold:
            assert token.shape[1] == 1, "only a single token can be folded"
            return mix_heads(attn, cast(nn.Linear, attn.to_v)(token)).repeat_interleave(num_frames, dim=0)
        return attn(norm(tokens), encoder_hidden_states=token.repeat_interleave(num_frames, dim=0))
