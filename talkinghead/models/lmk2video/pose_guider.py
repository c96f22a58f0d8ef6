"""Guidance images to features of five scales that the denoiser adds to its own.

Letters of shapes: B samples, F frames of a sample, N images (the frames of a sample one after the other, or
references), C channels, H and W height and width of guidance images in pixels, h and w height and width of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from talkinghead.models.weights import StrictModel

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
    each map would lose how much of an image the map covers.)
    """
    if normalisation == "frame":
        groups = min(_MAX_GROUPS, max(1, channels // _CHANNELS_PER_GROUP))
        return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)
    return nn.BatchNorm2d(channels) if normalisation == "running" else WindowNorm(channels)


_SPAN = 64.0
"""Length of an image's longer side, whatever its size: its neighbourhoods have the same code at every resolution."""


def position_code(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Code of each position of an image.

    The first half of the channels tells the row, the other the column; each sines then cosines of geometrically spaced
    rates (Vaswani et al., arXiv 1706.03762), of the middle of the position.

    Args:
        height: Positions of a column.
        width: Positions of a row.
        channels: C, a multiple of 4.
        device: Device of the result.

    Returns:
        `[height * width, C]` float32, in row-major order.
    """
    assert channels % 4 == 0, "rows and columns need a sine and a cosine each"
    rates = torch.exp(torch.arange(channels // 4, device=device) * (-math.log(10000.0) / (channels // 4)))
    unit = _SPAN / max(height, width)
    rows = (torch.arange(height, device=device) + 0.5)[:, None] * unit * rates
    columns = (torch.arange(width, device=device) + 0.5)[:, None] * unit * rates
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=2).flatten(0, 1)


GUIDANCE_SCALE = 8
"""Pixels of a guidance image along the side of a latent: what the stem reduces it by, whatever the VAE does."""


class LandmarkAttention(nn.Module):
    """Attention from the driving landmarks to those of the reference portrait: where each part of the face came from.

    Both know their positions, so a driven lip can find the lip of the reference and how far away it is. The last layer
    starts at zero.

    Args:
        channels: C of both.
        heads: Heads of the attention.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.norm_reference = nn.LayerNorm(channels)
        self.attn = Attention(channels, cross_attention_dim=channels, heads=heads, dim_head=channels // heads)
        _zero(cast(nn.Linear, cast(nn.ModuleList, self.attn.to_out)[0]))

    def forward(self, hidden: Tensor, reference: Tensor) -> Tensor:
        """`[B * F, C, h, w]` and `[B, C, h', w']` → `[B * F, C, h, w]`."""
        count, channels, height, width = hidden.shape
        own = _tokens(self.norm, hidden)
        # Once for each sample, then repeated over its frames.
        other = _tokens(self.norm_reference, reference).repeat_interleave(count // len(reference), dim=0)
        found = self.attn(own, encoder_hidden_states=other)
        return hidden + found.transpose(1, 2).reshape(count, channels, height, width)


class PoseGuider(StrictModel):
    """Guidance images (drawn landmarks) to one feature for each resolution of the denoiser, and one more.

    After PoseGuider of AniPortrait (arXiv 2403.17694); names and shapes of what both have are those of the published
    `pose_guider.pth`. The published network describes attention to the reference's landmarks and lacks it, and it
    normalises over the frames that happen to stand next to each other; see `reference_attention` and `normalisation`.
    The defaults are the published sizes.

    Args:
        block_out_channels: Channels of the denoiser's levels, from the finest.
        stem_channels: Channels of the convolutions down to 1/8 of the image; there are two of the first ones of each.
        attention_heads: Heads of the self-attention of each scale.
        attention_head_dim: Channels of each of these heads.
        norm_num_groups: Groups of the group norm before it.
        normalisation: One of `Normalisation`.
        reference_attention: Attend from the driving landmarks to the reference's at each scale but the first.
        reference_heads: Heads of that attention.
        zero_outputs: Each feature passes a last layer that starts at zero, so that an untrained guider leaves the
            denoiser as it is. Otherwise only the first feature starts at zero (as published).
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm", "conv_layers")

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        stem_channels: Sequence[int] = (3, 16, 32, 64, 128),
        attention_heads: int = 16,
        attention_head_dim: int = 88,
        norm_num_groups: int = 32,
        normalisation: Normalisation = "frame",
        reference_attention: bool = True,
        reference_heads: int = 8,
        zero_outputs: bool = True,
    ) -> None:
        super().__init__()
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, not {normalisation!r}")
        if len(stem_channels) != 5 or stem_channels[0] != 3:
            raise ValueError("stem_channels must be five numbers, of which the first is 3 (RGB)")
        if reference_attention and any(width % reference_heads or width % 4 for width in block_out_channels):
            raise ValueError(f"block_out_channels must be multiples of reference_heads {reference_heads} and of 4")
        self.normalisation: Normalisation = normalisation
        first, *others = block_out_channels
        self.conv_layers = _stem(normalisation, stem_channels)
        self.final_proj = nn.Conv2d(stem_channels[-1], first, kernel_size=1)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.num_scales = len(block_out_channels)
        # What comes out has the size of the denoiser's hidden state after each level: the next level's resolution.
        widths = [first, *block_out_channels[:1], *others]
        for number in range(1, self.num_scales + 1):
            before, after = widths[number - 1], widths[number]
            self.add_module(f"conv_layers_{number}", _scale(normalisation, before, after, number < self.num_scales))
            self.add_module(
                f"cross_attn{number}",
                Transformer2DModel(attention_heads, attention_head_dim, after, norm_num_groups=norm_num_groups),
            )
        self.reference_attentions = nn.ModuleList(
            LandmarkAttention(width, reference_heads) for width in widths[1:] if reference_attention
        )
        self.output_layers = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths if zero_outputs)
        for layer in self.output_layers if zero_outputs else [self.final_proj]:
            _zero(cast(nn.Conv2d, layer))

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks: units of sharding, compiling and activation checkpointing."""
        return [self._part("cross_attn", number) for number in range(1, self.num_scales + 1)]

    @property
    def frames_are_independent(self) -> bool:
        """Whether a frame's features are the same whatever frames are computed with it (outside of training)."""
        return self.normalisation in ("frame", "running")

    def forward(self, images: Tensor, reference: Tensor | Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Features of guidance images.

        Args:
            images: `[B, F, 3, H, W]` in [-1, 1], H and W multiples of 8.
            reference: Guidance images of the references, `[B, 3, H, W]` in [-1, 1], or what `encode_reference` made of
                them. Wanted where there is `reference_attention`; else without effect.

        Returns:
            `[B, F, C, h, w]`: first of 1/8 of the size, then one for each level of the denoiser: of half the size of
            the one before, but for the last, which has the size of the one before.

        Raises:
            ValueError: The reference is missing, or a size does not fit.
        """
        batch, num_frames, _, height, width = images.shape
        if height % GUIDANCE_SCALE or width % GUIDANCE_SCALE:
            raise ValueError(
                f"guidance images of {width}x{height} pixels: width and height must be multiples of {GUIDANCE_SCALE}"
            )
        attended = self._reference(reference, batch)

        # The stem: 1/8 of the size.
        hidden = self._stem_features(images.flatten(0, 1))
        outputs = [self._finish(0, hidden)]

        # Scale by scale: half the size (but for the last), self-attention, and a look at the reference's landmarks.
        for number in range(1, self.num_scales + 1):
            hidden = self._part("conv_layers_", number)(hidden)
            hidden = self._part("cross_attn", number)(hidden, return_dict=False)[0]
            if attended is not None:
                hidden = self.reference_attentions[number - 1](hidden, attended[number - 1])
            outputs.append(self._finish(number, hidden))
        return tuple(output.unflatten(0, (batch, num_frames)) for output in outputs)

    def encode_reference(self, reference: Tensor) -> tuple[Tensor, ...]:
        """What driving landmarks attend to, of guidance images `[B, 3, H, W]`: one `[B, C, h, w]` for each scale."""
        hidden = self._stem_features(reference)
        features = []
        for number in range(1, self.num_scales + 1):
            hidden = self._part("conv_layers_", number)(hidden)
            features.append(hidden)
        return tuple(features)

    def _reference(self, reference: Tensor | Sequence[Tensor] | None, batch: int) -> Sequence[Tensor] | None:
        if not self.reference_attentions:
            return None
        if reference is None:
            raise ValueError("this PoseGuider attends to the reference's landmarks: give its guidance image too")
        features = self.encode_reference(reference) if isinstance(reference, Tensor) else reference
        if len(features) != self.num_scales or len(features[0]) != batch:
            raise ValueError(f"the reference must be {batch} guidance images, or their {self.num_scales} features")
        return features

    def _stem_features(self, images: Tensor) -> Tensor:
        if self.normalisation == "published":
            # [-1, 1] → 2 v - 1 of v in 0 … 255
            images = images * 255.0 + 254.0
        return self.final_proj(self.conv_layers(images.contiguous())) * self.scale

    def _finish(self, number: int, hidden: Tensor) -> Tensor:
        return self.output_layers[number](hidden) if self.output_layers else hidden

    def _part(self, name: str, number: int) -> nn.Module:
        return self.get_submodule(f"{name}{number}")


def _stem(normalisation: Normalisation, channels: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions, and a 4x4 one of stride 2 wherever the channels grow but the last time: 1/8 of the size."""
    layers: list[nn.Module] = []
    for index, width in enumerate(channels[:-1]):
        last = index == len(channels) - 2
        layers += _convolution(normalisation, width, width, kernel=3, stride=1)
        layers += _convolution(
            normalisation, width, channels[index + 1], kernel=3 if last else 4, stride=1 if last else 2
        )
    return nn.Sequential(*layers)


def _scale(normalisation: Normalisation, before: int, after: int, downsample: bool) -> nn.Sequential:
    if not downsample:
        return nn.Sequential(*_convolution(normalisation, before, after, kernel=3, stride=1))
    return nn.Sequential(
        *_convolution(normalisation, before, before, kernel=3, stride=1),
        *_convolution(normalisation, before, after, kernel=3, stride=2),
    )


def _convolution(normalisation: Normalisation, before: int, after: int, *, kernel: int, stride: int) -> list[nn.Module]:
    layer = nn.Conv2d(before, after, kernel, stride=stride, padding=1)
    nn.init.normal_(layer.weight, std=math.sqrt(2.0 / (kernel * kernel * before)))
    nn.init.zeros_(cast(Tensor, layer.bias))
    return [layer, make_norm(normalisation, after), nn.ReLU()]


def _tokens(norm: nn.Module, images: Tensor) -> Tensor:
    """`[N, C, h, w]` → `[N, h * w, C]`, normalised, with their positions."""
    _, channels, height, width = images.shape
    tokens = norm(images.flatten(2).transpose(1, 2))
    return tokens + position_code(height, width, channels, tokens.device).to(tokens.dtype)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
