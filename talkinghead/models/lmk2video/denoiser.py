"""The network that predicts the velocity of noisy latents, given a reference, a pose and an image token.

Letters of shapes: B samples, F frames of a sample, C channels, h and w height and width of the latents, D width of the
image token. The layers are called in `unet.UNetTrunk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from talkinghead.models.lmk2video.unet import NORM_EPS, Conditioning, Features, References, UNetShape, UNetTrunk
from talkinghead.models.lmk2video.unet_blocks import KeyValue


class Condition(NamedTuple):
    """The part of the conditioning that differs between the two halves of guidance."""

    token: Tensor
    """Image tokens of the references, `[B, 1, D]`; zeros: unconditional."""
    reference: References | None
    """Features of B references, or their keys and values; None: plain self-attention."""


class Begun(NamedTuple):
    """Intermediate result of a call just before the first motion module, where no frame depends on another yet.

    A frame's result is the same whatever other frames are computed with it, so windows that overlap can share it.
    """

    state: Tensor
    """Skip state for the way up, `[B, F, C, h, w]`; the same under every condition."""
    hidden: Tensor
    """Hidden state after the first layer's transformer, `[B, F, C, h, w]`."""


class Denoiser(UNetTrunk):
    """Stable Diffusion 1.5's UNet, frame by frame, with reference attention, pose features and optional motion.

    After Animate Anyone (arXiv 2311.17117), AnimateDiff (arXiv 2307.04725) and AniPortrait (arXiv 2403.17694). Names
    and shapes of the spatial parameters are those of `diffusers` and of the published `denoising_unet.pth`; motion
    modules are named as in `diffusers.UNetMotionModel`. All conditions are arguments: the network keeps nothing between
    calls. The defaults are Stable Diffusion 1.5's sizes.

    Args:
        in_channels: Channels of the latents.
        out_channels: Channels of the prediction.
        block_out_channels: Channels of each level, from the finest resolution.
        layers_per_block: Layers of a level on the way down; a level on the way up has one more.
        attention_levels: Whether each level has transformers.
        num_attention_heads: Heads of every attention over positions.
        cross_attention_dim: Width D of the image token.
        norm_num_groups: Groups of every group norm.
        motion: Whether there are motion modules (stage 2): after every layer, also in the middle.
        motion_frames: Longest window of the motion modules, in frames.
        motion_heads: Heads of every attention over time.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] = (True, True, True, False),
        num_attention_heads: int = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        motion: bool = False,
        motion_frames: int = 32,
        motion_heads: int = 8,
    ) -> None:
        super().__init__()
        self.max_frames = motion_frames if motion else None
        self._build(
            UNetShape(
                in_channels=in_channels,
                block_out_channels=block_out_channels,
                layers_per_block=layers_per_block,
                attention_levels=attention_levels,
                num_attention_heads=num_attention_heads,
                cross_attention_dim=cross_attention_dim,
                norm_num_groups=norm_num_groups,
                motion_frames=self.max_frames,
                motion_heads=motion_heads,
            )
        )

        # The output head, which the trunk lacks because the reference network needs none.
        first = block_out_channels[0]
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, kernel_size=3, padding=1)

    def forward(
        self,
        latents: Tensor | Begun,
        timestep: Tensor | int,
        token: Tensor,
        *,
        reference: References | None = None,
        dropped: Tensor | None = None,
        pose: Sequence[Tensor] | None = None,
        fold: bool = False,
    ) -> Tensor:
        """Velocity of noisy latents.

        Args:
            latents: Noisy latents, `[B, F, C, h, w]`, or the result of `begin` for them under the same conditions.
            timestep: Timesteps `[B]`, or one for all samples.
            token: Image tokens of the references, `[B, 1, D]`; zeros: unconditional.
            reference: Features of B references, or their keys and values, by name of the transformer block; None: plain
                self-attention.
            dropped: Bool `[B]`, samples whose reference is left out (training only). The reference must then have the
                size of the latents. At inference, a call without a reference does the same and costs less.
            pose: Features of `PoseGuider`, one `[B, F, C, h, w]` for each scale; None: no pose.
            fold: Add the attention to the single token as a constant, see `SpatialTransformer.forward`.

        Returns:
            Predicted velocity, `[B, F, C, h, w]`.

        Raises:
            ValueError: More frames than the motion modules have positions for, or conditions that do not fit.
        """
        # Refuse what does not fit, before a kernel fails with a message about shapes that the caller never saw.
        begun = isinstance(latents, Begun)
        shape = latents.state.shape if begun else latents.shape
        batch, num_frames, _, height, width = shape
        if self.max_frames is not None and num_frames > self.max_frames:
            raise ValueError(
                f"{num_frames} frames at once, and the motion modules know {self.max_frames}: use shorter windows"
            )
        if dropped is not None and dropped.shape != (batch,):
            raise ValueError(f"dropped must be [{batch}], not {list(dropped.shape)}")
        self._check_pose(shape, pose)
        self._check_condition(batch, token, reference)

        # The UNet, which treats the frames of all samples as one batch; only motion modules split it again.
        time = self._embed_time(timestep, batch, num_frames)
        given = Conditioning(time, token, num_frames, reference, dropped, fold)
        frames = (latents.state.flatten(0, 1), latents.hidden.flatten(0, 1)) if begun else latents.flatten(0, 1)
        hidden, _ = self._forward(frames, given, _each_frame(pose))  # [B * F, C, h, w]

        # The output head: channels of the finest level to channels of the latents.
        hidden = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return hidden.view(batch, num_frames, -1, height, width)

    def begin(
        self,
        latents: Tensor,
        timestep: Tensor | int,
        conditions: Sequence[Condition],
        *,
        pose: Sequence[Tensor] | None = None,
        fold: bool = False,
    ) -> list[Begun]:
        """First part of a call, up to the first motion module, under several conditions.

        Everything before the first transformer is independent of the conditions and is computed once for all of them.
        The result equals the same part of a call up to rounding, which can depend on the number of frames in the batch.

        Args:
            latents: Noisy latents, `[B, F, C, h, w]`, with any number of frames.
            timestep: Timesteps `[B]`, or one for all samples.
            conditions: At least one condition.
            pose: Pose features, as for `forward`.
            fold: Add the attention to the token as a constant, as for `forward`.

        Returns:
            One result for each condition, which `forward` takes instead of the latents.

        Raises:
            ValueError: Conditions that do not fit.
        """
        # Refuse what does not fit. The number of frames is free: no motion module is reached.
        batch, num_frames = latents.shape[:2]
        self._check_pose(latents.shape, pose)
        for token, reference in conditions:
            self._check_condition(batch, token, reference)

        # Shared by all conditions: the way in, and the first residual block. Token and reference enter later.
        time = self._embed_time(timestep, batch, num_frames)
        state = self._enter(latents.flatten(0, 1), _each_frame(pose))
        level = self.down_blocks[0]
        opened = self._call(level.resnets[0], state, time)  # [B * F, C, h, w]

        # Once for each condition: the first transformer, which attends to token and reference. Its features are only
        # of use to a reference network, so they go into a dictionary that is thrown away.
        state = state.unflatten(0, (batch, num_frames))
        begun = []
        for token, reference in conditions:
            given = Conditioning(time, token, num_frames, reference, fold=fold)
            hidden = self._attend(level, 0, opened, given, {})
            begun.append(Begun(state, hidden.unflatten(0, (batch, num_frames))))
        return begun

    def _check_pose(self, shape: torch.Size, pose: Sequence[Tensor] | None) -> None:
        batch, num_frames, _, height, width = shape
        if pose is None:
            return
        # One feature enters after `conv_in`, and one after each level of the way down.
        levels = len(self.down_blocks)
        if len(pose) != levels + 1:
            raise ValueError(f"{len(pose)} pose features for {levels} levels: wanted are {levels + 1}")
        if pose[0].shape[:2] != (batch, num_frames) or pose[0].shape[-2:] != (height, width):
            raise ValueError(
                f"pose features {list(pose[0].shape)} do not fit latents {list(shape)}: guidance images must be of the"
                " size of the images"
            )

    def _check_condition(self, batch: int, token: Tensor, reference: References | None) -> None:
        if token.shape[:2] != (batch, 1):
            raise ValueError(f"token must be [{batch}, 1, D], one for each sample, not {list(token.shape)}")
        if reference is not None:
            # Names identify the architecture: a reference network of another depth lacks some of ours.
            missing = [name for name in self.transformers() if name not in reference]
            if missing:
                raise ValueError(f"the reference has no feature of {missing[0]}: it is of a network of another shape")
            # One reference for each sample, not for each frame. All entries have the same batch: one is enough.
            first = next(iter(reference.values()))
            rows = len(first.key if isinstance(first, KeyValue) else first)
            if rows != batch:
                raise ValueError(f"{rows} references for {batch} samples: wanted is one for each")

    @torch.no_grad()
    def project_reference(self, reference: Features) -> dict[str, KeyValue]:
        """Keys and values of references in every transformer, computed once for many calls; without gradients.

        Args:
            reference: Features by name of the transformer block, `[B, L, C]` each.

        Returns:
            Keys and values by the same names, `[B, L, C]` each, to give to `forward` as its `reference`.
        """
        return {name: module.project(reference[name]) for name, module in self.transformers().items()}

    def motion_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the motion modules, which are those that stage 2 trains."""
        return ((name, value) for name, value in self.named_parameters() if ".motion_modules." in name)

    @torch.no_grad()
    def load_spatial(self, state: Mapping[str, Tensor]) -> None:
        """Copy the spatial parameters (all but the motion modules) from another network.

        Args:
            state: `state_dict` of a stage-1 denoiser or of Stable Diffusion's UNet; other tensors in it are ignored.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        # Checked by hand, because `strict=False` below would also accept a file that lacks half of the network.
        wanted = {key: value for key, value in self.state_dict().items() if ".motion_modules." not in key}
        wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
        if wrong:
            raise ValueError(f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}")
        self.load_state_dict({key: state[key] for key in wanted}, strict=False)


def _each_frame(pose: Sequence[Tensor] | None) -> list[Tensor] | None:
    """Pose features as a batch of frames: `[B, F, C, h, w]` → `[B * F, C, h, w]` each."""
    return None if pose is None else [feature.flatten(0, 1) for feature in pose]
