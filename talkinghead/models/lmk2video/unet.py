"""Stable Diffusion 1.5's UNet up to its output head: what the reference network and the denoiser share.

A layer is a residual block, a spatial transformer (where its level has them) and a motion module (where the model has
them). Parameters are named as in `diffusers`, so stock weights fit. References are arguments, and the features of the
transformers are results: nothing is kept between calls.

Letters of shapes: B samples, F frames of a sample, B * F all frames (those of a sample one after the other), C
channels, h and w height and width of latents or of a hidden state, L = h * w tokens of a transformer in row-major
order, D width of the image token, T width of the time embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from talkinghead.models.lmk2video.unet_blocks import KeyValue, MotionModule, SpatialTransformer, Upsampler
from talkinghead.models.weights import StrictModel

NORM_EPS = 1e-5

Features = Mapping[str, Tensor]
"""Name of a transformer block → its feature `[B, L, C]`: the output of `norm1`."""
References = Features | Mapping[str, KeyValue]
"""What `ReferenceNet` returns, or what `Denoiser.project_reference` makes of it."""


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """Sizes of a UNet. The defaults of the models that use it are those of Stable Diffusion 1.5."""

    in_channels: int
    block_out_channels: Sequence[int]
    """Channels of each level, from the finest."""
    layers_per_block: int
    """Layers of a level on the way down; one more on the way up."""
    attention_levels: Sequence[bool]
    """Which levels have transformers."""
    num_attention_heads: int
    cross_attention_dim: int
    """D."""
    norm_num_groups: int
    motion_frames: int | None = None
    """Longest window of the motion modules; None: no motion modules."""
    motion_heads: int = 8

    @property
    def time_channels(self) -> int:
        """T."""
        return 4 * self.block_out_channels[0]

    def __post_init__(self) -> None:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError("attention_levels needs one entry for each of block_out_channels")
        for channels in self.block_out_channels:
            for name, parts in (("num_attention_heads", self.num_attention_heads), ("motion_heads", self.motion_heads)):
                if channels % parts:
                    raise ValueError(f"{channels} channels cannot be split among {name} {parts}")
            if channels % self.norm_num_groups:
                raise ValueError(f"{channels} channels cannot be split into norm_num_groups {self.norm_num_groups}")
        if self.block_out_channels[0] % 2:
            raise ValueError("block_out_channels[0] must be even: it is the width of the timestep's sines and cosines")
        if self.motion_frames is not None and self.motion_frames < 1:
            raise ValueError(f"motion_frames must be at least 1, not {self.motion_frames}")


class Conditioning(NamedTuple):
    """What every layer is given next to its hidden state."""

    time: Tensor
    """`[B * F, T]`, the embedded timestep."""
    token: Tensor
    """`[B, 1, D]` of the reference image."""
    num_frames: int
    """F."""
    references: References | None = None
    """What each transformer attends to next to its own tokens, of B references; None: plain self-attention."""
    dropped: Tensor | None = None
    """`[B]` bool: samples without a reference."""
    fold: bool = False
    """Whether to add the attention to the token as a constant."""


class Level(nn.Module):
    """The layers of one resolution, which `UNetTrunk` calls one by one.

    Args:
        shape: Sizes of the UNet.
        name: The level's name within the UNet.
        inputs: Channels into each residual block.
        channels: Channels out of all of them.
        layers: Number of motion modules and, with `attend`, of transformers.
        attend: Whether there are transformers.
        downsample: Whether half the resolution follows.
        upsample: Whether twice the resolution follows.
    """

    def __init__(
        self,
        shape: UNetShape,
        name: str,
        inputs: Sequence[int],
        channels: int,
        *,
        layers: int,
        attend: bool = True,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.names = [f"{name}.attentions.{index}.transformer_blocks.0" for index in range(layers if attend else 0)]
        """Name of each transformer's block, as in `Features`."""
        # In this order parameters stand in optimizers, and not in that in which they draw their first weights.
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList(
            SpatialTransformer(channels, shape.num_attention_heads, shape.cross_attention_dim, shape.norm_num_groups)
            for _ in self.names
        )
        self.motion_modules = nn.ModuleList()
        if shape.motion_frames is not None:
            self.motion_modules.extend(
                MotionModule(channels, shape.motion_heads, shape.motion_frames, shape.norm_num_groups)
                for _ in range(layers)
            )
        self.resnets.extend(
            ResnetBlock2D(
                in_channels=width,
                out_channels=channels,
                temb_channels=shape.time_channels,
                groups=shape.norm_num_groups,
                eps=NORM_EPS,
            )
            for width in inputs
        )
        self.downsamplers = nn.ModuleList(
            [Downsample2D(channels, use_conv=True, padding=1, name="op")] if downsample else []
        )
        self.upsamplers = nn.ModuleList([Upsampler(channels)] if upsample else [])

    @property
    def blocks(self) -> list[nn.Module]:
        """Units of sharding, compiling and activation checkpointing."""
        return [*self.resnets, *self.attentions, *self.motion_modules]


class UNetTrunk(StrictModel):
    """A UNet without its output head, whose transformers take references and return features by name."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ("SpatialTransformer", "MotionModule", "ResnetBlock2D")
    _skip_layerwise_casting_patterns = ("norm",)
    gradient_checkpointing = False
    """Set by `enable_gradient_checkpointing`: each block is computed again in the backward pass."""

    down_blocks: Sequence[Level]
    """From the finest resolution."""
    mid_block: Level
    up_blocks: Sequence[Level]
    """From the coarsest resolution."""

    def _build(self, shape: UNetShape) -> None:
        widths, layers = list(shape.block_out_channels), shape.layers_per_block
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(shape.in_channels, widths[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], shape.time_channels)
        down = nn.ModuleList(
            Level(
                shape,
                f"down_blocks.{index}",
                [widths[max(index - 1, 0)], *[width] * (layers - 1)],
                width,
                layers=layers,
                attend=shape.attention_levels[index],
                downsample=index < last,
            )
            for index, width in enumerate(widths)
        )
        self.down_blocks = cast(Sequence[Level], down)
        self.mid_block = Level(shape, "mid_block", [widths[-1]] * 2, widths[-1], layers=1)
        up = nn.ModuleList()
        for number, index in enumerate(reversed(range(last + 1))):
            # Each layer is given the hidden state, and a state that the way down left.
            hidden = [widths[min(index + 1, last)], *[widths[index]] * layers]
            states = [*[widths[index]] * layers, widths[max(index - 1, 0)]]
            level = Level(
                shape,
                f"up_blocks.{number}",
                [own + state for own, state in zip(hidden, states, strict=True)],
                widths[index],
                layers=layers + 1,
                attend=shape.attention_levels[index],
                upsample=index > 0,
            )
            up.append(level)
        self.up_blocks = cast(Sequence[Level], up)

    @property
    def levels(self) -> list[Level]:
        """All levels, in the order of computing."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks: units of sharding, compiling and activation checkpointing."""
        return [block for level in self.levels for block in level.blocks]

    def transformers(self) -> dict[str, SpatialTransformer]:
        """Name of each transformer block, as in `Features` → the transformer around it, in the order of computing."""
        return {
            name: cast(SpatialTransformer, transformer)
            for level in self.levels
            for name, transformer in zip(level.names, level.attentions, strict=True)
        }

    def _forward(
        self,
        latents: Tensor | tuple[Tensor, Tensor],
        given: Conditioning,
        pose: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From `conv_in` to the last level.

        Args:
            latents: `[B * F, C, h, w]`; or, where the first layer is begun, the state for the way up and the hidden
                state after the first transformer.
            given: What every layer is given.
            pose: One more than levels, `[B * F, C, h, w]`: added after `conv_in` (and so to the state that goes to the
                way up), then after each level of the way down (not to those states).

        Returns:
            `[B * F, C, h, w]`, and the features of all transformers that were computed.
        """
        features: dict[str, Tensor] = {}
        begun = isinstance(latents, tuple)

        # In: latents become a hidden state, which is the first state for the way up.
        state, hidden = latents if begun else (self._enter(latents, pose),) * 2
        states = [state]

        # Down: every layer leaves a state for the way up; then half the resolution, and pose.
        for number, level in enumerate(self.down_blocks):
            for index, resnet in enumerate(level.resnets):
                if number > 0 or index > 0 or not begun:
                    hidden = self._call(resnet, hidden, given.time)
                    hidden = self._attend(level, index, hidden, given, features)
                hidden = self._move(level, index, hidden, given)
                states.append(hidden)
            for downsampler in level.downsamplers:
                hidden = downsampler(hidden)
                states.append(hidden)
            if pose is not None:
                hidden = hidden + pose[number + 1].to(hidden.dtype)

        # Middle: a layer, and one more residual block.
        first, last = self.mid_block.resnets
        hidden = self._call(first, hidden, given.time)
        hidden = self._attend(self.mid_block, 0, hidden, given, features)
        hidden = self._move(self.mid_block, 0, hidden, given)
        hidden = self._call(last, hidden, given.time)

        # Up: every layer takes the newest state; then twice the resolution, or one less where the way down rounded up.
        for level in self.up_blocks:
            for index, resnet in enumerate(level.resnets):
                hidden = self._call(resnet, torch.cat([hidden, states.pop()], dim=1), given.time)
                hidden = self._attend(level, index, hidden, given, features)
                hidden = self._move(level, index, hidden, given)
            for upsampler in level.upsamplers:
                hidden = upsampler(hidden, tuple(states[-1].shape[-2:]))
        return hidden, features

    def _embed_time(self, timestep: Tensor | int, batch: int, num_frames: int) -> Tensor:
        """`[B * F, T]`. The sines and cosines are taken in float32, whatever the precision of the network."""
        weight = self.conv_in.weight
        steps = torch.as_tensor(timestep, device=weight.device).expand(batch)
        return self.time_embedding(self.time_proj(steps).to(weight.dtype)).repeat_interleave(num_frames, dim=0)

    def _enter(self, latents: Tensor, pose: Sequence[Tensor] | None) -> Tensor:
        """`conv_in` and the first pose feature."""
        hidden = self.conv_in(latents)
        return hidden if pose is None else hidden + pose[0].to(hidden.dtype)

    def _attend(
        self, level: Level, index: int, hidden: Tensor, given: Conditioning, features: dict[str, Tensor]
    ) -> Tensor:
        """Transformer number `index` of a level, where there is one: token and reference enter. Notes its feature."""
        if index < len(level.attentions):
            name = level.names[index]
            reference = given.references[name] if given.references else None
            hidden, features[name] = self._call(
                level.attentions[index], hidden, given.token, reference, given.dropped, given.fold
            )
        return hidden

    def _move(self, level: Level, index: int, hidden: Tensor, given: Conditioning) -> Tensor:
        """Motion module number `index` of a level, where there is one: here frames meet."""
        if index < len(level.motion_modules):
            hidden = self._call(level.motion_modules[index], hidden, given.num_frames)
        return hidden

    def _call(self, block: nn.Module, *args: Any) -> Any:
        """A block's result, or with activation checkpointing a promise to compute it again."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Any, self._gradient_checkpointing_func)(block, *args)
        return block(*args)
