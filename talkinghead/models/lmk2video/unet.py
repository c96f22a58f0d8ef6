"""Stable Diffusion 1.5's UNet without its output head, the trunk of both the reference network and the denoiser.

A layer is a residual block, a spatial transformer (where its level has them) and a motion module (where the model has
them). Parameters are named as in `diffusers`, so stock weights fit. References are arguments, and the features of the
transformers are results: nothing is kept between calls.

Letters of shapes: B samples, F frames of a sample, B * F all frames (the frames of a sample one after the other), C
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
"""Features by name of the transformer block, `[B, L, C]` each: outputs of `norm1`, the inputs of self-attention."""
References = Features | Mapping[str, KeyValue]
"""References as `ReferenceNet` returns them, or as keys and values by `Denoiser.project_reference`."""


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """Sizes of a UNet.

    Raises:
        ValueError: Sizes that do not fit each other; says which.
    """

    in_channels: int
    block_out_channels: Sequence[int]
    """Channels of each level, from the finest resolution."""
    layers_per_block: int
    """Layers of a level on the way down; a level on the way up has one more."""
    attention_levels: Sequence[bool]
    """Whether each level has transformers."""
    num_attention_heads: int
    cross_attention_dim: int
    """Width D of the image token."""
    norm_num_groups: int
    motion_frames: int | None = None
    """Longest window of the motion modules, in frames; None: no motion modules."""
    motion_heads: int = 8

    @property
    def time_channels(self) -> int:
        """Width T of the time embedding, four times the finest level's as in Stable Diffusion."""
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
    """Inputs that every layer gets next to its hidden state."""

    time: Tensor
    """Embedded timesteps, `[B * F, T]`."""
    token: Tensor
    """Image tokens of the references, `[B, 1, D]`."""
    num_frames: int
    """Number F of frames of a sample."""
    references: References | None = None
    """B references, to which each transformer attends next to its own tokens; None: plain self-attention."""
    dropped: Tensor | None = None
    """Bool `[B]`, samples whose reference is left out."""
    fold: bool = False
    """Whether to add the attention to the token as a constant, see `SpatialTransformer.forward`."""


class Level(nn.Module):
    """The layers of one resolution, which `UNetTrunk` calls one by one.

    Args:
        shape: Sizes of the UNet.
        name: Name of the level within the UNet.
        inputs: Input channels of each residual block.
        channels: Output channels of every residual block.
        layers: Number of motion modules and, with `attend`, of transformers.
        attend: Whether there are transformers.
        downsample: Whether the level ends with a layer that halves the resolution.
        upsample: Whether the level ends with a layer that doubles the resolution.
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
        # Two orders matter, and they differ. Assigning the lists fixes the order of the parameters, which saved
        # optimizer states rely on; building the layers fixes the order in which first weights are drawn from the
        # generator. So `resnets` is assigned first and filled last.
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
        """Repeated blocks, the units of sharding, compiling and activation checkpointing."""
        return [*self.resnets, *self.attentions, *self.motion_modules]


class UNetTrunk(StrictModel):
    """A UNet without its output head, whose transformers take references and return features by name."""

    # Switches that `diffusers` and accelerate look up by these names.
    _supports_gradient_checkpointing = True
    _no_split_modules = ("SpatialTransformer", "MotionModule", "ResnetBlock2D")
    _skip_layerwise_casting_patterns = ("norm",)
    channels_last = True
    """Whether a training lays out the kernels of convolutions as tensor cores take them (`train.trainer.precision`).
    The blocks keep that layout from end to end."""
    gradient_checkpointing = False
    """Whether each block is computed again in the backward pass; set by `enable_gradient_checkpointing`."""

    down_blocks: Sequence[Level]
    """Levels of the way down, from the finest resolution."""
    mid_block: Level
    up_blocks: Sequence[Level]
    """Levels of the way up, from the coarsest resolution."""

    def _build(self, shape: UNetShape) -> None:
        widths, layers = list(shape.block_out_channels), shape.layers_per_block
        last = len(widths) - 1

        # In: latents to a hidden state, timesteps to an embedding. The sines and cosines are Stable Diffusion's
        # (cosines first, no shift), without which its weights would see other timesteps.
        self.conv_in = nn.Conv2d(shape.in_channels, widths[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], shape.time_channels)

        # Down: the first residual block of a level widens what the level before passes on.
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

        # Middle: always with a transformer, even where the coarsest level has none; one residual block on either side.
        self.mid_block = Level(shape, "mid_block", [widths[-1]] * 2, widths[-1], layers=1)

        # Up: the levels in reverse. Every residual block gets the hidden state concatenated with a skip state.
        up = nn.ModuleList()
        for number, index in enumerate(reversed(range(last + 1))):
            # The last skip state of a level comes from the next finer level's downsampler, or from `conv_in`.
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
        """Repeated blocks of all levels, the units of sharding, compiling and activation checkpointing."""
        return [block for level in self.levels for block in level.blocks]

    def transformers(self) -> dict[str, SpatialTransformer]:
        """Transformers by the names of their blocks, as in `Features`, in the order of computing."""
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
        """Hidden state after the last level, and the features of the transformers.

        Args:
            latents: Latents `[B * F, C, h, w]`; or, where the first layer has begun, its skip state and the hidden
                state after its transformer.
            given: Inputs of every layer.
            pose: Pose features `[B * F, C, h, w]`, one more than there are levels. The first is added after `conv_in`
                (and so to the first skip state), the others after each level of the way down (not to skip states).

        Returns:
            Hidden state `[B * F, C, h, w]`, and the features of all transformers that were computed, by name.
        """
        features: dict[str, Tensor] = {}
        begun = isinstance(latents, tuple)

        # In: latents become a hidden state, which is also the first skip state. Begun latents bring both.
        state, hidden = latents if begun else (self._enter(latents, pose),) * 2
        states = [state]

        # Down: every layer leaves a skip state; then the resolution is halved, and the pose is added.
        for number, level in enumerate(self.down_blocks):
            for index, resnet in enumerate(level.resnets):
                # Begun latents have the first residual block and transformer done; its motion module is still to do.
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

        # Middle: a layer, and one more residual block, at the coarsest resolution.
        first, last = self.mid_block.resnets
        hidden = self._call(first, hidden, given.time)
        hidden = self._attend(self.mid_block, 0, hidden, given, features)
        hidden = self._move(self.mid_block, 0, hidden, given)
        hidden = self._call(last, hidden, given.time)

        # Up: every layer takes the newest skip state; then the resolution is doubled. Where the way down rounded an odd
        # size up, the result must be one smaller than twice: the next skip state tells the size.
        for level in self.up_blocks:
            for index, resnet in enumerate(level.resnets):
                hidden = self._call(resnet, torch.cat([hidden, states.pop()], dim=1), given.time)
                hidden = self._attend(level, index, hidden, given, features)
                hidden = self._move(level, index, hidden, given)
            for upsampler in level.upsamplers:
                hidden = upsampler(hidden, tuple(states[-1].shape[-2:]))
        return hidden, features

    def _embed_time(self, timestep: Tensor | int, batch: int, num_frames: int) -> Tensor:
        """Embedded timesteps `[B * F, T]`; sines and cosines are float32, whatever the precision of the network."""
        weight = self.conv_in.weight
        if not torch.is_tensor(timestep):
            timestep = torch.full((), timestep, dtype=torch.int64, device=weight.device)  # filled there, not copied
        steps = timestep.to(weight.device).expand(batch)  # [B]
        # Embedded once for each sample, then repeated over its frames.
        return self.time_embedding(self.time_proj(steps).to(weight.dtype)).repeat_interleave(num_frames, dim=0)

    def _enter(self, latents: Tensor, pose: Sequence[Tensor] | None) -> Tensor:
        """Hidden state of `conv_in` plus the first pose feature, `[B * F, C, h, w]`."""
        hidden = self.conv_in(latents)
        return hidden if pose is None else hidden + pose[0].to(hidden.dtype)

    def _attend(
        self, level: Level, index: int, hidden: Tensor, given: Conditioning, features: dict[str, Tensor]
    ) -> Tensor:
        """Hidden state after transformer number `index` of a level, if it has one; adds its feature to `features`."""
        if index < len(level.attentions):
            name = level.names[index]
            reference = given.references[name] if given.references else None
            hidden, features[name] = self._call(
                level.attentions[index], hidden, given.token, reference, given.dropped, given.fold
            )
        return hidden

    def _move(self, level: Level, index: int, hidden: Tensor, given: Conditioning) -> Tensor:
        """Hidden state after motion module number `index` of a level, if it has one: only here do frames interact."""
        if index < len(level.motion_modules):
            hidden = self._call(level.motion_modules[index], hidden, given.num_frames)
        return hidden

    def _call(self, block: nn.Module, *args: Any) -> Any:
        """Result of a block; with activation checkpointing its intermediate tensors are dropped and computed again."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Any, self._gradient_checkpointing_func)(block, *args)
        return block(*args)
