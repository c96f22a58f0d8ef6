"""The three networks that training moves, as one module."""

from __future__ import annotations

import contextlib
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet


class Conditions(NamedTuple):
    """What a velocity is predicted from, next to noisy latents. A NamedTuple: parallel training sees its tensors."""

    token: Tensor
    """`[B, 1, D]` of the reference images; zeros where it is dropped."""
    reference: Tensor
    """`[B, C, h, w]`: latents of the reference images."""
    dropped: Tensor
    """`[B]` bool: samples that do without the reference's features."""
    guidance: Tensor
    """`[B, F, 3, 8h, 8w]` in [-1, 1]."""
    reference_guidance: Tensor
    """`[B, 3, 8h, 8w]` in [-1, 1]."""


class Lmk2Video(nn.Module):
    """Denoiser, reference network and PoseGuider; the frozen image networks stay outside.

    Args:
        denoiser: Predicts.
        reference_net: Looks at the reference.
        pose_guider: Looks at the guidance images.
    """

    def __init__(self, denoiser: Denoiser, reference_net: ReferenceNet, pose_guider: PoseGuider) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.reference_net = reference_net
        self.pose_guider = pose_guider
        self.fold = False
        """Whether attention to the single token is added as the constant that it is."""
        self.only_motion = False
        """Whether all but the motion modules is frozen."""

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks: units of sharding, compiling and activation checkpointing."""
        return [*self.denoiser.blocks, *self.reference_net.blocks, *self.pose_guider.blocks]

    def train_images(self, *, fold: bool) -> None:
        """Stage 1: train everything but the reference network's last level.

        Args:
            fold: Leave the queries and keys of the attention to the image token, and the norm before them, as they
                are: a softmax over one token is 1, so their gradient is 0 and nothing is lost but the work.
        """
        self.requires_grad_(True)
        self.reference_net.freeze_tail()
        self.fold = fold
        if fold:
            for network in (self.denoiser, self.reference_net):
                for transformer in network.transformers().values():
                    attn, norm = transformer.block.attn2, transformer.block.norm2
                    assert attn is not None and attn.to_k is not None and norm is not None
                    for part in (attn.to_q, attn.to_k, norm):
                        part.requires_grad_(False)

    def train_motion(self) -> None:
        """Stage 2: train the motion modules, and nothing else."""
        self.requires_grad_(False)
        for _, parameter in self.denoiser.motion_parameters():
            parameter.requires_grad_(True)
        self.fold = self.only_motion = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation; what is frozen as a whole stays in evaluation."""
        super().train(mode)
        if self.only_motion:
            self.reference_net.eval()
            self.pose_guider.eval()
        return self

    def forward(self, noisy: Tensor, timesteps: Tensor, given: Conditions) -> Tensor:
        """Predict the velocity.

        Args:
            noisy: Latents `[B, F, C, h, w]`.
            timesteps: `[B]`.
            given: Reference, pose and token.

        Returns:
            `[B, F, C, h, w]`.
        """
        with torch.no_grad() if self.only_motion else contextlib.nullcontext():
            features = self.reference_net(given.reference, given.token, fold=self.fold)
            pose = self._pose(given.guidance, given.reference_guidance)
        return self.denoiser(
            noisy,
            timesteps,
            given.token,
            reference=features,
            dropped=given.dropped,
            pose=pose,
            fold=self.fold,
        )

    def _pose(self, guidance: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        if self.pose_guider.frames_are_independent:
            return self.pose_guider(guidance, reference)
        # Published weights normalise over all frames that they are given: a window must not see its neighbours.
        alone = [self.pose_guider(guidance[n : n + 1], reference[n : n + 1]) for n in range(len(guidance))]
        return tuple(torch.cat(level) for level in zip(*alone, strict=True))
