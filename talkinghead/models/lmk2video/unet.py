"""Stable Diffusion 1.5's UNet up to its output head: what the reference network and the denoiser share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from talkinghead.models.lmk2video.spatial_transformer import KeyValue, SpatialTransformer
from talkinghead.models.lmk2video.unet_levels import Conditioning, DownLevel, LayerShape, Level, MidLevel, UpLevel
from talkinghead.models.strict_model import StrictModel

Features = Mapping[str, Tensor]
"""Name of a transformer block → its feature `[B, L, C]`: the output of `norm1`, tokens in row-major order."""


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
    """Width of the picture token."""
    norm_num_groups: int
    motion_frames: int | None = None
    """Longest window of the motion modules; None: no motion modules."""
    motion_heads: int = 8

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


class UNetTrunk(StrictModel):
    """A UNet without its output head, whose transformers take references and return features by name."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ("SpatialTransformer", "MotionModule", "ResnetBlock2D")
    _skip_layerwise_casting_patterns = ("norm",)

    def _build(self, shape: UNetShape) -> None:
        widths = list(shape.block_out_channels)
        time_channels = 4 * widths[0]
        layer = LayerShape(
            heads=shape.num_attention_heads,
            cross_attention_dim=shape.cross_attention_dim,
            norm_groups=shape.norm_num_groups,
            time_channels=time_channels,
            motion_frames=shape.motion_frames,
            motion_heads=shape.motion_heads,
        )
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(shape.in_channels, widths[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], time_channels)
        self.down_blocks = nn.ModuleList(
            DownLevel(
                layer,
                (widths[max(index - 1, 0)], width),
                layers=shape.layers_per_block,
                attend=shape.attention_levels[index],
                downsample=index < last,
            )
            for index, width in enumerate(widths)
        )
        self.mid_block = MidLevel(layer, widths[-1])
        self.up_blocks = nn.ModuleList(
            UpLevel(
                layer,
                (widths[index], [widths[index]] * shape.layers_per_block + [widths[max(index - 1, 0)]]),
                in_channels=widths[min(index + 1, last)],
                attend=shape.attention_levels[index],
                upsample=index > 0,
            )
            for index in reversed(range(last + 1))
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks: units of sharding, compiling and activation checkpointing."""
        return [block for level in self._levels().values() for block in level.blocks]

    def transformers(self) -> dict[str, SpatialTransformer]:
        """Name of each transformer block, as in `Features` → the transformer around it, in the order of computing."""
        return {
            name: cast(SpatialTransformer, transformer)
            for prefix, level in self._levels().items()
            for name, transformer in zip(_names(prefix, level), level.attentions, strict=True)
        }

    def _levels(self) -> dict[str, Level]:
        named = [(f"down_blocks.{index}", level) for index, level in enumerate(self.down_blocks)]
        named += [("mid_block", self.mid_block)]
        named += [(f"up_blocks.{index}", level) for index, level in enumerate(self.up_blocks)]
        return {name: cast(Level, level) for name, level in named}

    def _embed_time(self, timestep: Tensor | int, batch: int, num_frames: int) -> Tensor:
        """`[B * F, T]`. The sines and cosines are taken in float32, whatever the precision of the network."""
        weight = self.conv_in.weight
        steps = torch.as_tensor(timestep, device=weight.device).expand(batch)
        return self.time_embedding(self.time_proj(steps).to(weight.dtype)).repeat_interleave(num_frames, dim=0)

    def _enter(self, pictures: Tensor, pose: Sequence[Tensor] | None) -> Tensor:
        """`conv_in` and the first pose feature."""
        hidden = self.conv_in(pictures)
        return hidden if pose is None else hidden + pose[0].to(hidden.dtype)

    def _begin(
        self,
        pictures: Tensor,
        conditions: Sequence[tuple[Conditioning, Mapping[str, Tensor | KeyValue] | None]],
        pose: Sequence[Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The work up to the first motion module, in which each frame is alone, under several conditions.

        Args:
            pictures: `[B * F, C, h, w]`.
            conditions: What every layer is given, of the same timestep in all of them, and references.
            pose: As in `_run`.

        Returns:
            `[B * F, C, h, w]`: the state for the way up, equal under all conditions; and the hidden state of each.
        """
        level = cast(DownLevel, self.down_blocks[0])
        first = _names("down_blocks.0", level)[:1]
        state = self._enter(pictures, pose)
        opened = level.open(state, conditions[0][0])
        return state, [
            level.begin(opened, given, [references[name] for name in first] if references else [])
            for given, references in conditions
        ]

    def _run(
        self,
        pictures: Tensor | tuple[Tensor, Tensor],
        given: Conditioning,
        references: Mapping[str, Tensor | KeyValue] | None = None,
        pose: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From `conv_in` to the last level.

        Args:
            pictures: `[B * F, C, h, w]`, or the two states that `_begin` returned.
            given: To every layer.
            references: For every transformer, by name.
            pose: One more than levels, `[B * F, C, h, w]`: added after `conv_in` (and so to the state that goes to the
                way up), then after each level of the way down (not to those states).

        Returns:
            `[B * F, C, h, w]`, and the features of all transformers that ran.
        """
        found: dict[str, Tensor] = {}

        def beside(prefix: str, level: nn.Module) -> list[Tensor | KeyValue]:
            return [references[name] for name in _names(prefix, level)] if references else []

        begun = isinstance(pictures, tuple)
        state, hidden = pictures if begun else (self._enter(pictures, pose),) * 2
        states = [state]
        for index, level in enumerate(self.down_blocks):
            prefix = f"down_blocks.{index}"
            hidden, more, features = level(hidden, given, beside(prefix, level), begun and index == 0)
            names = _names(prefix, level)
            found.update(zip(names[len(names) - len(features) :], features, strict=True))
            states += more
            if pose is not None:
                hidden = hidden + pose[index + 1].to(hidden.dtype)
        hidden, features = self.mid_block(hidden, given, beside("mid_block", self.mid_block))
        found.update(zip(_names("mid_block", self.mid_block), features, strict=True))
        for index, level in enumerate(self.up_blocks):
            prefix = f"up_blocks.{index}"
            used = [states.pop() for _ in cast(UpLevel, level).resnets]
            size = (states[-1].shape[-2], states[-1].shape[-1]) if states else None
            hidden, features = level(hidden, used, given, beside(prefix, level), size)
            found.update(zip(_names(prefix, level), features, strict=True))
        return hidden, found


def _names(prefix: str, level: nn.Module) -> list[str]:
    count = len(cast(nn.ModuleList, level.attentions))
    return [f"{prefix}.attentions.{index}.transformer_blocks.0" for index in range(count)]
