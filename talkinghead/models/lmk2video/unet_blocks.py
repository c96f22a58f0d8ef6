"""The blocks of the UNet: attention over positions (with a reference), attention over time, twice the resolution.

Letters of shapes: B samples, F frames of a sample, N = B · F images (the frames of a sample one after the other),
C channels, h and w height and width of a hidden state, L = h · w tokens of an image in row-major order, R tokens of a
reference, D width of the image token.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from torch.nn import functional


class KeyValue(NamedTuple):
    """Keys and values of a reference in one attention layer, `[B, L, C]` each."""

    key: Tensor
    value: Tensor


def project(attn: Attention, feature: Tensor) -> KeyValue:
    """The keys and values of a reference's feature `[B, L, C]`, by the layer's own weights."""
    return KeyValue(cast(nn.Linear, attn.to_k)(feature), cast(nn.Linear, attn.to_v)(feature))


def mix_heads(attn: Attention, states: Tensor) -> Tensor:
    """The layer's last part: `[…, C]` → `[…, C]`."""
    for layer in cast(nn.ModuleList, attn.to_out):
        states = layer(states)
    return states


class ReferenceAttention:
    """Processor of a stock `Attention` layer: queries from the own tokens, keys and values from own and reference.

    The reference is projected once for each sample and not once for each frame. A processor holds nothing, so it can be
    called, recomputed and compiled in any order.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reference: Tensor | KeyValue | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            attn: The layer.
            hidden_states: Own tokens `[B * F, L, C]`, the frames of a sample one after the other.
            encoder_hidden_states: None: this is self-attention.
            attention_mask: None: every token counts.
            reference: Feature `[B, R, C]`, or its keys and values; None: plain self-attention.
            dropped: `[B]` bool, samples that do without the reference (needs R = L). They see their own tokens twice,
                which leaves every softmax average as it is and needs no mask, so fast kernels apply.

        Returns:
            `[B * F, L, C]`.
        """
        assert encoder_hidden_states is None and attention_mask is None, "self-attention over whole images only"
        count, length, width = hidden_states.shape
        query = attn.to_q(hidden_states)
        key, value = project(attn, hidden_states)
        if reference is not None:
            beside = reference if isinstance(reference, KeyValue) else project(attn, reference)
            key = _beside(key, beside.key, dropped)
            value = _beside(value, beside.value, dropped)
        query, key, value = (part.view(count, -1, attn.heads, width // attn.heads) for part in (query, key, value))
        states = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return mix_heads(attn, states.transpose(1, 2).reshape(count, length, width))


def _beside(own: Tensor, reference: Tensor, dropped: Tensor | None) -> Tensor:
    """Own `[B * F, L, C]` and reference `[B, R, C]` → `[B * F, L + R, C]`."""
    batch, extra, _ = reference.shape
    own = own.unflatten(0, (batch, -1))
    reference = reference.to(own.dtype)[:, None].expand(-1, own.shape[1], -1, -1)
    if dropped is not None:
        assert extra == own.shape[2], "a dropped reference must have as many tokens as the image"
        reference = torch.where(dropped[:, None, None, None], own, reference)
    return torch.cat([own, reference], dim=2).flatten(0, 1)


class SpatialTransformer(Transformer2DModel):
    """Stable Diffusion 1.5's transformer (stock weights and names) whose block is given a reference and returns one.

    Args:
        channels: C.
        heads: Heads of both attentions.
        cross_attention_dim: D.
        norm_groups: Groups of the group norm in front.
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
        """Transform images, each for itself.

        Args:
            hidden: `[B * F, C, h, w]`, the frames of a sample one after the other.
            token: `[B, 1, D]` of the reference image.
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
        tokens = tokens + self._image(tokens, token, count // len(token), fold)
        tokens = tokens + block.ff(cast(nn.LayerNorm, block.norm3)(tokens))
        images = tokens.transpose(1, 2).reshape(count, channels, height, width)
        return hidden + self.proj_out(images), feature

    def project(self, feature: Tensor) -> KeyValue:
        """The keys and values of a reference's feature `[B, R, C]`, to be given instead of it."""
        return project(self.block.attn1, feature)

    def _image(self, tokens: Tensor, token: Tensor, num_frames: int, fold: bool) -> Tensor:
        """What the image token adds: `[B * F, L, C]`, or `[B * F, 1, C]` where it is folded."""
        attn, norm = self.block.attn2, self.block.norm2
        assert attn is not None and norm is not None
        if fold:
            assert token.shape[1] == 1, "only a single token can be folded"
            return mix_heads(attn, cast(nn.Linear, attn.to_v)(token)).repeat_interleave(num_frames, dim=0)
        return attn(norm(tokens), encoder_hidden_states=token.repeat_interleave(num_frames, dim=0))


class MotionModule(AnimateDiffTransformer3D):
    """AnimateDiff's motion module, stock weights and names, which normalises each frame for itself.

    The stock module takes the statistics of its group norm over all frames of the window; AnimateDiff's later versions,
    and the weights trained from them, take them in each frame. Its last layer starts at zero, so that a new module
    changes nothing.

    Args:
        channels: C.
        heads: Heads of both attentions.
        max_frames: Frames that have a position: the longest window.
        norm_groups: Groups of the group norm in front.
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


class EnlargingConv2d(nn.Conv2d):
    """A 3x3 convolution of an image that is first enlarged to twice its size, each pixel repeated.

    Of the nine pixels under the kernel at most four differ, so weights that meet the same pixel are added first: each
    of the four positions within an enlarged pixel becomes a 2x2 convolution of the small image (sub-pixel
    convolution, after arXiv 1609.05158). The enlarged image is never made. Equal to enlarging and convolving but for
    rounding; sums of weights are taken in float32 and rounded once.

    Args:
        channels: C, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def forward(self, input: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`[N, C, h, w]` → `[N, C, 2 h, 2 w]`, or of `size` (height, width), which may lack the last row or column."""
        count, channels, height, width = input.shape
        if size is not None and size != (2 * height, 2 * width):
            # Beyond the last row lies the border there, not the other half of a pixel.
            enlarged = functional.interpolate(input, size=size, mode="nearest")
            return super().forward(enlarged)
        padded = functional.pad(input, (1, 1, 1, 1))
        rows = []
        for y, part in enumerate(_halves(self.weight.float(), dim=2)):
            kernels = [kernel.to(self.weight.dtype) for kernel in _halves(part, dim=3)]
            columns = [
                functional.conv2d(padded[..., y : y + height + 1, x : x + width + 1], kernel, self.bias)
                for x, kernel in enumerate(kernels)
            ]
            rows.append(torch.stack(columns, dim=-1))
        # [N, C, h, 2, w, 2]: which half of a pixel stands after its position.
        return torch.stack(rows, dim=3).view(count, channels, 2 * height, 2 * width)


class Upsampler(nn.Module):
    """Stable Diffusion's upsampling layer; parameters are named as those of `diffusers.models.upsampling.Upsample2D`.

    Args:
        channels: C, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = EnlargingConv2d(channels)

    def forward(self, hidden: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """See `EnlargingConv2d.forward`."""
        return self.conv(hidden, size)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What three taps along a dimension are to the first and to the second half of an enlarged pixel: two taps each."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)
