"""Network from guidance images to pose features, which the denoiser adds to its hidden states at five scales.

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

from talkinghead.models.running_statistics import BatchNorm
from talkinghead.models.weights import StrictModel

Normalisation = Literal["frame", "published", "trained", "running"]
"""Kind of normalisation in the PoseGuider, with the range of the guidance images.

- `frame`: group norm of each frame for itself, on images in [-1, 1]. A frame's features do not depend on its
  neighbours, so they can be computed once, in any order.
- `published`: AniPortrait's shipped inference: batch norm with the statistics of the batch, in training and in
  inference, on pixel values 2 v - 1 of v in 0 … 255 (sic).
- `trained`: AniPortrait's training: batch norm with the statistics of the batch, on images in [-1, 1].
- `running`: batch norm with running statistics outside of training, on images in [-1, 1].
"""
NORMALISATIONS = get_args(Normalisation)

_CHANNELS_PER_GROUP = 4
_MAX_GROUPS = 32


class WindowNorm(BatchNorm):
    """Batch norm that always takes the statistics of its input, also outside of training."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps `[N, C, h, w]`; statistics are taken over N, h and w."""
        if self.training:
            return super().forward(x)
        # PyTorch's CPU kernel sums channels-last input in float32, which costs up to 1 % of the result.
        return F.batch_norm(x.contiguous(), None, None, self.weight, self.bias, training=True, eps=self.eps)


def make_norm(normalisation: Normalisation, channels: int) -> nn.Module:
    """Normalisation layer for `channels` maps.

    `frame` has groups of at least four maps, and at most 32 groups; the three maps of the first layer are one group. A
    group for each map would lose how much of an image the map covers.
    """
    if normalisation == "frame":
        groups = min(_MAX_GROUPS, max(1, channels // _CHANNELS_PER_GROUP))
        return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)
    return BatchNorm(channels) if normalisation == "running" else WindowNorm(channels)


_SPAN = 64.0
"""Length of an image's longer side in position codes, at every resolution: a place has one code at all scales."""


def position_code(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Code of each position of an image.

    The first half of the channels tells the row, the second half the column. Each half has sines, then cosines, of the
    position's middle at geometrically spaced rates (Vaswani et al., arXiv 1706.03762).

    Args:
        height: Number of rows.
        width: Number of columns.
        channels: Channels C of a code, a multiple of 4.
        device: Device of the result.

    Returns:
        Codes in row-major order, float32 `[height * width, C]`.
    """
    assert channels % 4 == 0, "rows and columns need a sine and a cosine each"
    rates = torch.exp(torch.arange(channels // 4, device=device) * (-math.log(10000.0) / (channels // 4)))
    unit = _SPAN / max(height, width)
    rows = (torch.arange(height, device=device) + 0.5)[:, None] * unit * rates
    columns = (torch.arange(width, device=device) + 0.5)[:, None] * unit * rates
    # A row's code is repeated along the row, a column's code down the column: [height, width, C / 2] each.
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=2).flatten(0, 1)


GUIDANCE_SCALE = 8
"""Pixels of a guidance image along the side of a latent. The stem's factor, independent of the VAE's."""


class LandmarkAttention(nn.Module):
    """Attention from driving landmarks to the reference portrait's, which tells where each part of the face came from.

    Both carry position codes, so a driving lip can find the lip of the reference and how far away it is. The last layer
    starts at zero.

    Args:
        channels: Channels C of both.
        heads: Heads of the attention.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.norm_reference = nn.LayerNorm(channels)
        self.attn = Attention(channels, cross_attention_dim=channels, heads=heads, dim_head=channels // heads)
        _zero(cast(nn.Linear, cast(nn.ModuleList, self.attn.to_out)[0]))

    def forward(self, hidden: Tensor, reference: Tensor) -> Tensor:
        """Driving features with what they found in the reference.

        Args:
            hidden: Driving features `[B * F, C, h, w]`, the frames of a sample one after the other.
            reference: Reference features `[B, C, h', w']`.

        Returns:
            Driving features of the same shape.
        """
        count, channels, height, width = hidden.shape
        own = _tokens(self.norm, hidden)  # [B * F, h * w, C]
        # The reference's tokens are made once for each sample, then repeated over its frames.
        other = _tokens(self.norm_reference, reference).repeat_interleave(count // len(reference), dim=0)
        found = self.attn(own, encoder_hidden_states=other)
        return hidden + found.transpose(1, 2).reshape(count, channels, height, width)


class PoseGuider(StrictModel):
    """Network from guidance images (drawn landmarks) to pose features, one for each level of the denoiser and one more.

    After PoseGuider of AniPortrait (arXiv 2403.17694); parameters that both have are named and shaped as in the
    published `pose_guider.pth`. The paper describes attention to the reference's landmarks, which the published network
    lacks, and that network normalises over the frames that happen to be in the same batch; see `reference_attention`
    and `normalisation`. The defaults are the published sizes.

    Args:
        block_out_channels: Channels of the denoiser's levels, from the finest resolution.
        stem_channels: Channels of the stem, which reduces the image to 1/8: five numbers, the first 3 (RGB). Between
            each two of them lie two convolutions.
        attention_heads: Heads of the self-attention at each scale.
        attention_head_dim: Channels of each of these heads.
        norm_num_groups: Groups of the group norm before that self-attention.
        normalisation: Kind of normalisation, see `Normalisation`.
        reference_attention: Whether driving landmarks attend to the reference's, at each scale but the first.
        reference_heads: Heads of that attention.
        zero_outputs: Whether each feature passes a last layer that starts at zero, so that an untrained guider leaves
            the denoiser as it is. Otherwise only the first feature starts at zero (as published).

    Raises:
        ValueError: Settings that do not fit each other; says which.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm", "conv_layers")
    channels_last = True
    """Whether a training lays out the kernels of convolutions as tensor cores take them (`train.trainer.precision`)."""

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

        # The stem: image to 1/8 of its size, in the channels of the finest level, times a learnt factor.
        first, *others = block_out_channels
        self.conv_layers = _stem(normalisation, stem_channels)
        self.final_proj = nn.Conv2d(stem_channels[-1], first, kernel_size=1)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.num_scales = len(block_out_channels)

        # The scales: each feature has the size of the denoiser's hidden state after a level, which is the resolution of
        # the next level (after the last level, its own).
        widths = [first, *block_out_channels[:1], *others]
        for number in range(1, self.num_scales + 1):
            before, after = widths[number - 1], widths[number]
            self.add_module(f"conv_layers_{number}", _scale(normalisation, before, after, number < self.num_scales))
            self.add_module(
                f"cross_attn{number}",
                Transformer2DModel(attention_heads, attention_head_dim, after, norm_num_groups=norm_num_groups),
            )

        # What the published network lacks: attention to the reference, and output layers that start at zero. Names are
        # ours, so published weights still fit the rest.
        self.reference_attentions = nn.ModuleList(
            LandmarkAttention(width, reference_heads) for width in widths[1:] if reference_attention
        )
        self.output_layers = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths if zero_outputs)
        for layer in self.output_layers if zero_outputs else [self.final_proj]:
            _zero(cast(nn.Conv2d, layer))

    @property
    def blocks(self) -> list[nn.Module]:
        """Repeated blocks, the units of sharding, compiling and activation checkpointing."""
        return [self._part("cross_attn", number) for number in range(1, self.num_scales + 1)]

    @property
    def frames_are_independent(self) -> bool:
        """Whether a frame's features are the same whatever frames are computed with it (outside of training)."""
        return self.normalisation in ("frame", "running")

    def forward(self, images: Tensor, reference: Tensor | Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Pose features of guidance images.

        Args:
            images: Guidance images `[B, F, 3, H, W]` in [-1, 1]; H and W are multiples of 8.
            reference: Guidance images of the references, `[B, 3, H, W]` in [-1, 1], or the result of `encode_reference`
                for them. Required with `reference_attention`, otherwise without effect.

        Returns:
            Features `[B, F, C, h, w]`. The first has 1/8 of the images' size; then one follows for each level of the
            denoiser, half the size of the one before (the last: the same size).

        Raises:
            ValueError: The reference is missing, or a size does not fit.
        """
        batch, num_frames, _, height, width = images.shape
        if height % GUIDANCE_SCALE or width % GUIDANCE_SCALE:
            raise ValueError(
                f"guidance images of {width}x{height} pixels: width and height must be multiples of {GUIDANCE_SCALE}"
            )
        self._check_statistics(batch * num_frames, height, width)
        # The reference's landmarks at every scale, one for each sample; None where there is no attention to them.
        attended = self._reference(reference, batch)

        # The stem: all frames as one batch, 1/8 of the size.
        hidden = self._stem_features(images.flatten(0, 1))
        outputs = [self._finish(0, hidden)]

        # Scale by scale: half the size (but for the last), self-attention, and attention to the reference's landmarks.
        for number in range(1, self.num_scales + 1):
            hidden = self._part("conv_layers_", number)(hidden)
            hidden = self._part("cross_attn", number)(hidden, return_dict=False)[0]
            if attended is not None:
                hidden = self.reference_attentions[number - 1](hidden, attended[number - 1])
            outputs.append(self._finish(number, hidden))
        return tuple(output.unflatten(0, (batch, num_frames)) for output in outputs)

    def _check_statistics(self, count: int, height: int, width: int) -> None:
        """Refuse images that are a single value of each channel at the coarsest scale, which has no variance."""
        if self.normalisation == "frame" or not (self.training or isinstance(self.conv_layers[1], WindowNorm)):
            return
        side = GUIDANCE_SCALE * 2 ** (self.num_scales - 1)
        if count * math.ceil(height / side) * math.ceil(width / side) < 2:
            raise ValueError(
                f"this PoseGuider ({self.normalisation}) normalises over the positions of an image, and one of"
                f" {width}x{height} pixels has a single position at its coarsest scale: take images wider or higher"
                f" than {side} pixels"
            )

    def encode_reference(self, reference: Tensor) -> tuple[Tensor, ...]:
        """Features of the references' landmarks, to which driving landmarks attend.

        Args:
            reference: Guidance images of the references, `[B, 3, H, W]` in [-1, 1].

        Returns:
            Features `[B, C, h, w]`, one for each scale but the first.
        """
        # Convolutions only: the self-attention of each scale serves the driving frames.
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
            # From [-1, 1] to 2 v - 1 of v in 0 … 255: the published program scales bytes as if they lay in [0, 1].
            images = images * 255.0 + 254.0
        return self.final_proj(self.conv_layers(images.contiguous())) * self.scale

    def _finish(self, number: int, hidden: Tensor) -> Tensor:
        return self.output_layers[number](hidden) if self.output_layers else hidden

    def _part(self, name: str, number: int) -> nn.Module:
        return self.get_submodule(f"{name}{number}")


def _stem(normalisation: Normalisation, channels: Sequence[int]) -> nn.Sequential:
    """Stem to 1/8 of the size: a 3x3 convolution, then a 4x4 one with stride 2 (the last: 3x3, stride 1) per width."""
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
    """Normalised tokens of images `[N, C, h, w]`, with position codes added: `[N, h * w, C]`."""
    _, channels, height, width = images.shape
    tokens = norm(images.flatten(2).transpose(1, 2))
    return tokens + position_code(height, width, channels, tokens.device).to(tokens.dtype)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
