"""Blocks of the UNet: attention over positions (with a reference), attention over time, and upsampling.

Letters of shapes: B samples, F frames of a sample, N = B · F images (the frames of a sample one after the other),
C channels, h and w height and width of a hidden state, L = h · w tokens of an image in row-major order, R tokens of a
reference, D width of the image token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from torch.nn import functional


class KeyValue(NamedTuple):
    """Keys and values of a reference in one attention layer, `[B, R, C]` each."""

    key: Tensor
    value: Tensor


def project(attn: Attention, feature: Tensor) -> KeyValue:
    """Keys and values of a feature `[…, L, C]`, by the attention layer's own weights."""
    return KeyValue(cast(nn.Linear, attn.to_k)(feature), cast(nn.Linear, attn.to_v)(feature))


def mix_heads(attn: Attention, states: Tensor) -> Tensor:
    """Output projection of an attention layer (and its dropout), `[…, C]` → `[…, C]`."""
    for layer in cast(nn.ModuleList, attn.to_out):
        states = layer(states)
    return states


_MOST_ROWS = 2**16 - 1
"""Rows of one call of attention: kernels for GPUs take them as the second or third dimension of their grid of blocks.
`getBlocksGrid` in PyTorch's mem_eff_attention/kernel_forward.h and kernel_backward.h; `dim3 grid` in flash-attention's
flash_fwd_launch_template.h. More end in "invalid configuration argument" (pytorch issues 142228, 146704)."""
_MOST_NUMBERS = 2**31 - 1
"""Numbers of the queries' gradient, which flash-attention's backward pass counts in 32 bits. More end in an illegal
access to memory (Dao-AILab/flash-attention, pull request 1500)."""


def most_rows(heads: int, tokens: int, width: int) -> int:
    """Number of rows that one call of attention takes on any GPU.

    Args:
        heads: Number of heads.
        tokens: Tokens of a row. The kernel pads them to a multiple of 128.
        width: Numbers of a token in a head. The kernel pads them to a multiple of 32.
    """
    numbers = heads * (-(-tokens // 128) * 128) * (-(-width // 32) * 32)
    return max(1, min(_MOST_ROWS, _MOST_NUMBERS // numbers))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of each row by itself, in as few calls as the kernels for GPUs allow.

    Attention over time has a row for each position of an image, so that eight windows of 64 x 64 latents are too many
    for one call.

    Args:
        query: Queries `[N, heads, T, D]`.
        key: Keys `[N, heads, S, D]`.
        value: Values `[N, heads, S, D]`.

    Returns:
        `[N, heads, T, D]`.
    """
    count, heads, tokens, width = query.shape
    most = most_rows(heads, tokens, width)
    if count <= most:
        return functional.scaled_dot_product_attention(query, key, value)
    parts = zip(query.split(most), key.split(most), value.split(most), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*part) for part in parts])


class ReferenceAttention:
    """Processor of a stock `Attention` layer that attends to an image's own tokens and to those of a reference.

    Queries come from the own tokens, keys and values from both. The reference is projected once for each sample, not
    for each frame. A processor holds no state, so it can be called, recomputed and compiled in any order.
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
        """Result of the attention layer.

        Args:
            attn: Layer that this processor belongs to.
            hidden_states: Own tokens `[B * F, L, C]`, the frames of a sample one after the other.
            encoder_hidden_states: Must be None: this is self-attention.
            attention_mask: Must be None: every token counts.
            reference: Feature `[B, R, C]`, or its keys and values; None: plain self-attention.
            dropped: Bool `[B]`, samples whose reference is left out (needs R = L). They attend to their own tokens
                twice, which leaves every softmax average as it is and needs no mask, so fast kernels apply.

        Returns:
            Attended tokens, `[B * F, L, C]`.
        """
        assert encoder_hidden_states is None and attention_mask is None, "self-attention over whole images only"
        count, length, width = hidden_states.shape

        # Keys and values: own tokens, then those of the reference.
        query = attn.to_q(hidden_states)
        key, value = project(attn, hidden_states)
        if reference is not None:
            extra = reference if isinstance(reference, KeyValue) else project(attn, reference)
            key = _append_reference(key, extra.key, dropped)  # [B * F, L + R, C]
            value = _append_reference(value, extra.value, dropped)

        # Attention in each head. PyTorch wants the heads before the tokens: [B * F, heads, tokens, C / heads].
        query, key, value = (part.view(count, -1, attn.heads, width // attn.heads) for part in (query, key, value))
        states = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return mix_heads(attn, states.transpose(1, 2).reshape(count, length, width))


def _append_reference(own: Tensor, reference: Tensor, dropped: Tensor | None) -> Tensor:
    """Own tokens `[B * F, L, C]` followed by their sample's reference `[B, R, C]`: `[B * F, L + R, C]`."""
    batch, extra, _ = reference.shape
    own = own.unflatten(0, (batch, -1))  # [B, F, L, C]
    # Repeated over the frames without a copy. Kept keys and values can be of another precision under autocast.
    reference = reference.to(own.dtype)[:, None].expand(-1, own.shape[1], -1, -1)  # [B, F, R, C]
    if dropped is not None:
        assert extra == own.shape[2], "a dropped reference must have as many tokens as the image"
        reference = torch.where(dropped[:, None, None, None], own, reference)
    return torch.cat([own, reference], dim=2).flatten(0, 1)


class SpatialTransformer(Transformer2DModel):
    """Stable Diffusion 1.5's transformer, with stock weights and names, that takes a reference and returns a feature.

    Args:
        channels: Channels C of the hidden state.
        heads: Heads of both attentions.
        cross_attention_dim: Width D of the image token.
        norm_groups: Groups of the group norm at the input.
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
        # The cast, because the stock annotation lists only the processors that come with diffusers.
        self.block.attn1.set_processor(cast(Any, ReferenceAttention()))

    @property
    def block(self) -> BasicTransformerBlock:
        """Transformer block, of which Stable Diffusion 1.5 has one in each transformer."""
        return cast(BasicTransformerBlock, self.transformer_blocks[0])

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden: Tensor,
        token: Tensor,
        reference: Tensor | KeyValue | None = None,
        dropped: Tensor | None = None,
        fold: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Hidden state after the transformer, and the block's feature. Frames do not interact.

        Args:
            hidden: Hidden state `[B * F, C, h, w]`, the frames of a sample one after the other.
            token: Image tokens of the references, `[B, 1, D]`.
            reference: Feature `[B, R, C]` of the same block in the reference network, or its keys and values.
            dropped: Bool `[B]`, samples whose reference is left out.
            fold: Add the attention to the token as a constant. A softmax over one token is 1, so each position receives
                `to_out(to_v(token))`, whatever the query. The result is equal up to rounding; the queries and keys of
                that attention, and the norm before it, are not used (in training they receive no gradient).

        Returns:
            Hidden state `[B * F, C, h, w]`, and the input of self-attention `[B * F, h * w, C]`, which serves other
            networks as the block's feature.
        """
        count, channels, height, width = hidden.shape
        block = self.block

        # In: pixels become tokens, [B * F, h * w, C].
        tokens = cast(nn.Conv2d, self.proj_in)(self.norm(hidden)).flatten(2).transpose(1, 2)

        # The block: attention to own and reference tokens, attention to the image token, feed-forward. The stock block
        # is not called, because it does not return the normalised tokens and cannot fold.
        feature = block.norm1(tokens)
        tokens = tokens + block.attn1(feature, reference=reference, dropped=dropped)
        tokens = tokens + self._image(tokens, token, count // len(token), fold)
        tokens = tokens + block.ff(cast(nn.LayerNorm, block.norm3)(tokens))

        # Out: tokens become pixels again, added to what came in.
        images = tokens.transpose(1, 2).reshape(count, channels, height, width)
        return hidden + self.proj_out(images), feature

    def project(self, feature: Tensor) -> KeyValue:
        """Keys and values of a reference's feature `[B, R, C]`, which `forward` takes instead of it."""
        return project(self.block.attn1, feature)

    def _image(self, tokens: Tensor, token: Tensor, num_frames: int, fold: bool) -> Tensor:
        """Result of the attention to the image token: `[B * F, L, C]`, or `[B * F, 1, C]` where it is folded."""
        attn, norm = self.block.attn2, self.block.norm2
        assert attn is not None and norm is not None
        if fold:
            assert token.shape[1] == 1, "only a single token can be folded"
            return mix_heads(attn, cast(nn.Linear, attn.to_v)(token)).repeat_interleave(num_frames, dim=0)
        return attn(norm(tokens), encoder_hidden_states=token.repeat_interleave(num_frames, dim=0))


class MotionModule(AnimateDiffTransformer3D):
    """AnimateDiff's motion module, with stock weights and names, whose group norm has the statistics of single frames.

    The stock module takes the statistics of its group norm over all frames of the window; AnimateDiff's later versions,
    and the weights trained from them, take them in each frame. Attention is computed in parts where a GPU's kernels do
    not take all positions at once (`attend`). The last layer starts at zero, so that a new module changes nothing.

    Args:
        channels: Channels C of the hidden state.
        heads: Heads of both attentions.
        max_frames: Number of frames that have a position code, which is the longest window.
        norm_groups: Groups of the group norm at the input.
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
        for block in self.transformer_blocks:
            for attn in (block.attn1, block.attn2):
                cast(Attention, attn).set_processor(cast(Any, ReferenceAttention()))
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, hidden: Tensor, num_frames: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hidden state after attention over time.

        Args:
            hidden: Hidden state `[B * F, C, h, w]`, the frames of a sample one after the other.
            num_frames: Number F of frames of a sample.

        Returns:
            Hidden state of the same shape.
        """
        _, channels, height, width = hidden.shape
        # In: every position becomes a series over time, [B * h * w, F, C]. Contiguous, because PyTorch 2.13's CPU
        # kernel crashes on channels-last input where only the norm's parameters need a gradient (all before is frozen).
        series = self.norm(hidden.contiguous()).view(-1, num_frames, channels, height, width).permute(0, 3, 4, 1, 2)
        series = self.proj_in(series.reshape(-1, num_frames, channels))

        # Attention over time, at each position for itself.
        for block in self.transformer_blocks:
            series = block(series)

        # Out: series become frames again, added to what came in. Added as views, so that nothing is copied, and the
        # result has the memory format of what came in.
        series = self.proj_out(series).view(-1, height, width, num_frames, channels)
        return (hidden.unflatten(0, (-1, num_frames)) + series.permute(0, 3, 4, 1, 2)).flatten(0, 1)


class EnlargingConv2d(nn.Conv2d):
    """3x3 convolution of an image enlarged to twice its size by repeating pixels, computed without enlarging it.

    At most four of the nine pixels under the kernel differ, so weights that meet the same pixel are added first: each
    of the four positions within an enlarged pixel becomes a 2x2 convolution of the small image (sub-pixel
    convolution, after arXiv 1609.05158). The result equals enlarging and convolving up to rounding; sums of weights are
    taken in float32 and rounded once.

    Args:
        channels: Channels C of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def forward(self, input: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Convolution of the enlarged image.

        Args:
            input: Images `[N, C, h, w]`.
            size: Height and width of the result; None: `(2 h, 2 w)`. Either may be one less, without the last row or
                column.

        Returns:
            Images `[N, C, height, width]`.
        """
        height, width = input.shape[-2:]
        if size is not None and size != (2 * height, 2 * width):
            # An odd size: the border follows directly after the first half of the last pixel, where the sums of weights
            # below would take the other half of that pixel. Rare (sizes that were rounded up), so simply enlarged.
            enlarged = functional.interpolate(input, size=size, mode="nearest")
            return super().forward(enlarged)

        # One 2x2 convolution for each of the four positions within an enlarged pixel, named by its row and column. The
        # second half of a pixel starts one input pixel later.
        padded = functional.pad(input, (1, 1, 1, 1))
        rows = []
        for y, part in enumerate(_halves(self.weight.float(), dim=2)):
            kernels = [kernel.to(self.weight.dtype) for kernel in _halves(part, dim=3)]
            columns = [
                functional.conv2d(padded[..., y : y + height + 1, x : x + width + 1], kernel, self.bias)
                for x, kernel in enumerate(kernels)
            ]
            rows.append(columns)
        return _interleaved(rows, channels_last=_is_channels_last(input))


class Upsampler(nn.Module):
    """Stable Diffusion's upsampling layer, with the parameter names of `diffusers.models.upsampling.Upsample2D`.

    Args:
        channels: Channels C of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = EnlargingConv2d(channels)

    def forward(self, hidden: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Hidden state of twice the resolution; arguments and result are those of `EnlargingConv2d.forward`."""
        return self.conv(hidden, size)


def _interleaved(rows: Sequence[Sequence[Tensor]], *, channels_last: bool) -> Tensor:
    """Image of twice the size from those of its halves of pixels, two rows of two `[N, C, h, w]`: `[N, C, 2 h, 2 w]`.

    Each half follows its pixel's position: the enlarged grid in order. Written in the format asked for, since stacking
    by itself would put the channels first, and the next convolution would turn all of it again.
    """
    if channels_last:
        stacked = torch.stack([torch.stack([half.movedim(1, -1) for half in row], dim=3) for row in rows], dim=2)
        return stacked.flatten(3, 4).flatten(1, 2).movedim(-1, 1)  # [N, h, 2, w, 2, C]
    stacked = torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=3)
    return stacked.flatten(4, 5).flatten(2, 3)  # [N, C, h, 2, w, 2]


def _is_channels_last(images: Tensor) -> bool:
    """Whether images have the channels of a pixel next to each other in memory, and could not be said not to."""
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Two-tap kernels along a dimension for the first and the second half of an enlarged pixel, from three taps."""
    # Neighbours of a first half are the pixel before and its own second half; of a second half, its own first half and
    # the pixel after. The own pixel thus meets two taps, which are added.
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)
