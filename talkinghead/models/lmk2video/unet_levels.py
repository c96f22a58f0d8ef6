"""The levels of Stable Diffusion 1.5's UNet, of stock blocks: down, in the middle, up.

A layer is a residual block, a spatial transformer (where the level has them) and a motion module (where the model has
them). Parameters are named as in `diffusers`, so stock weights fit. Levels take references as arguments and return the
features of their transformers; they keep nothing between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from talkinghead.models.lmk2video.motion_module import MotionModule
from talkinghead.models.lmk2video.spatial_transformer import KeyValue, SpatialTransformer
from talkinghead.models.lmk2video.upsampling import Upsampler

References = Sequence[Tensor | KeyValue | None]
"""For each transformer of a level, in order: what it sees beside its own tokens."""

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What all layers of a UNet have in common."""

    heads: int
    cross_attention_dim: int
    norm_groups: int
    time_channels: int
    """Width of the time embedding."""
    motion_frames: int | None
    """Longest window of the motion modules; None: there are none."""
    motion_heads: int


class Conditioning(NamedTuple):
    """What every layer is given beside the picture. A NamedTuple: sharding and checkpointing see the tensors in it."""

    time: Tensor
    """`[B * F, T]`, the embedded timestep."""
    token: Tensor
    """`[B, 1, D]` of the reference picture."""
    num_frames: int
    """F."""
    dropped: Tensor | None
    """`[B]` bool: samples without a reference."""
    fold: bool
    """Whether to add the attention to the token as a constant."""


class Level(nn.Module):
    """The layers of one resolution."""

    gradient_checkpointing = False
    """Set by `enable_gradient_checkpointing` of the model: each block is computed again in the backward pass."""
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, shape: LayerShape, channels: int, *, num_transformers: int, num_motion: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList(
            SpatialTransformer(channels, shape.heads, shape.cross_attention_dim, shape.norm_groups)
            for _ in range(num_transformers)
        )
        self.motion_modules = nn.ModuleList()
        if shape.motion_frames is not None:
            self.motion_modules.extend(
                MotionModule(channels, shape.motion_heads, shape.motion_frames, shape.norm_groups)
                for _ in range(num_motion)
            )

    @property
    def blocks(self) -> list[nn.Module]:
        """Units of sharding, compiling and activation checkpointing."""
        return [*self.resnets, *self.attentions, *self.motion_modules]

    def _add_resnet(self, shape: LayerShape, in_channels: int, out_channels: int) -> None:
        self.resnets.append(
            ResnetBlock2D(
                in_channels=in_channels,
                out_channels=out_channels,
                temb_channels=shape.time_channels,
                groups=shape.norm_groups,
                eps=NORM_EPS,
            )
        )

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _look(
        self, index: int, hidden: Tensor, given: Conditioning, references: References, features: list[Tensor]
    ) -> Tensor:
        """Transformer number `index`, where there is such; appends its feature."""
        if index < len(self.attentions):
            reference = references[index] if references else None
            hidden, feature = self._run(
                self.attentions[index], hidden, given.token, reference, given.dropped, given.fold
            )
            features.append(feature)
        return hidden

    def _move(self, index: int, hidden: Tensor, given: Conditioning) -> Tensor:
        """Motion module number `index`, where there is such: here frames meet."""
        if index < len(self.motion_modules):
            hidden = self._run(self.motion_modules[index], hidden, given.num_frames)
        return hidden


class DownLevel(Level):
    """Layers, then half the resolution (all levels but the last)."""

    def __init__(
        self, shape: LayerShape, channels: tuple[int, int], *, layers: int, attend: bool, downsample: bool
    ) -> None:
        super().__init__(shape, channels[1], num_transformers=layers if attend else 0, num_motion=layers)
        for index in range(layers):
            self._add_resnet(shape, channels[0 if index == 0 else 1], channels[1])
        self.downsamplers = nn.ModuleList(
            [Downsample2D(channels[1], use_conv=True, padding=1, name="op")] if downsample else []
        )

    def open(self, hidden: Tensor, given: Conditioning) -> Tensor:
        """The first residual block, which neither token nor reference nor other frames enter."""
        return self._run(self.resnets[0], hidden, given.time)

    def begin(self, opened: Tensor, given: Conditioning, references: References = ()) -> Tensor:
        """The first transformer behind `open`, which other frames do not enter."""
        return self._look(0, opened, given, references, [])

    def forward(
        self, hidden: Tensor, given: Conditioning, references: References = (), begun: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Go down.

        Args:
            hidden: `[B * F, C, h, w]`.
            given: To every layer.
            references: See `References`.
            begun: `hidden` is what `begin` returned.

        Returns:
            The next level's input, the states for the way up, and the transformers' features (without the first one's
            where that had begun).
        """
        states: list[Tensor] = []
        features: list[Tensor] = []
        for index, resnet in enumerate(self.resnets):
            if index > 0 or not begun:
                hidden = self._run(resnet, hidden, given.time)
                hidden = self._look(index, hidden, given, references, features)
            hidden = self._move(index, hidden, given)
            states.append(hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
            states.append(hidden)
        return hidden, states, features


class MidLevel(Level):
    """A residual block, then a layer whose residual block comes last."""

    def __init__(self, shape: LayerShape, channels: int) -> None:
        super().__init__(shape, channels, num_transformers=1, num_motion=1)
        for _ in range(2):
            self._add_resnet(shape, channels, channels)

    def forward(self, hidden: Tensor, given: Conditioning, references: References = ()) -> tuple[Tensor, list[Tensor]]:
        """`[B * F, C, h, w]` → the same shape, and the transformer's feature."""
        features: list[Tensor] = []
        hidden = self._run(self.resnets[0], hidden, given.time)
        hidden = self._look(0, hidden, given, references, features)
        hidden = self._move(0, hidden, given)
        return self._run(self.resnets[1], hidden, given.time), features


class UpLevel(Level):
    """Layers that are given the states of the way down, then twice the resolution (all levels but the last).

    Args:
        shape: Of the layers.
        channels: Out of this level, and of the state that each of its layers is given.
        in_channels: Into this level.
        attend: Whether there are transformers.
        upsample: Whether the resolution grows.
    """

    def __init__(
        self,
        shape: LayerShape,
        channels: tuple[int, Sequence[int]],
        *,
        in_channels: int,
        attend: bool,
        upsample: bool,
    ) -> None:
        out, states = channels
        super().__init__(shape, out, num_transformers=len(states) if attend else 0, num_motion=len(states))
        for index, state in enumerate(states):
            self._add_resnet(shape, state + (in_channels if index == 0 else out), out)
        self.upsamplers = nn.ModuleList([Upsampler(out)] if upsample else [])

    def forward(
        self,
        hidden: Tensor,
        states: list[Tensor],
        given: Conditioning,
        references: References = (),
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Go up.

        Args:
            hidden: `[B * F, C, h, w]`.
            states: One for each layer, in the order of the layers.
            given: To every layer.
            references: See `References`.
            size: (height, width) of the next level, which is not twice the own one where that was odd.

        Returns:
            The next level's input, and the transformers' features.
        """
        features: list[Tensor] = []
        for index, (resnet, state) in enumerate(zip(self.resnets, states, strict=True)):
            hidden = self._run(resnet, torch.cat([hidden, state], dim=1), given.time)
            hidden = self._look(index, hidden, given, references, features)
            hidden = self._move(index, hidden, given)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden, size)
        return hidden, features
