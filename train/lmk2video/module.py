"""The three trained networks of Lmk2Video as one module.

Dimensions: B samples, F frames of a window; C, h, w channels and size of latents; D numbers of the image token.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet


class Conditions(NamedTuple):
    """Conditions of a prediction, next to the noisy latents. A NamedTuple, in which DDP and FSDP2 find the tensors."""

    token: Tensor
    """Image token of the reference images, `[B, 1, D]`; zeros where it is dropped."""
    reference: Tensor
    """Latents of the reference images, `[B, C, h, w]`."""
    dropped: Tensor
    """Samples without the features of the reference, `[B]` bool."""
    guidance: Tensor
    """Guidance images of the target, `[B, F, 3, 8h, 8w]` in [-1, 1]."""
    reference_guidance: Tensor
    """Guidance images of the references, `[B, 3, 8h, 8w]` in [-1, 1]."""


class Lmk2Video(nn.Module):
    """Denoiser, reference network and PoseGuider; the frozen image networks stay outside.

    Args:
        denoiser: Network that predicts the velocity.
        reference_net: Network that makes features of the reference.
        pose_guider: Network that makes features of the guidance images.

    Raises:
        ValueError: The networks are of different sizes.
    """

    def __init__(self, denoiser: Denoiser, reference_net: ReferenceNet, pose_guider: PoseGuider) -> None:
        super().__init__()
        _check_together(denoiser, reference_net, pose_guider)
        self.denoiser = denoiser
        self.reference_net = reference_net
        self.pose_guider = pose_guider
        self.fold = False
        """Whether attention to the single image token is computed as the constant that it is."""
        self.only_motion = False
        """Whether everything but the motion modules is frozen."""

    @property
    def blocks(self) -> list[nn.Module]:
        """Repeated blocks: the units of sharding, compiling and activation checkpointing."""
        return [*self.denoiser.blocks, *self.reference_net.blocks, *self.pose_guider.blocks]

    def train_images(self, *, fold: bool) -> None:
        """Set up stage 1: train everything but the last level of the reference network.

        Args:
            fold: Whether to freeze queries and keys of the attention to the image token, and the norm before them. A
                softmax over one token is 1, so their gradient is 0: this saves work and changes nothing else.
        """
        self.requires_grad_(True)
        self.reference_net.freeze_tail()  # as published: much of it has no effect on any feature
        self.fold = fold
        if fold:
            for network in (self.denoiser, self.reference_net):
                for transformer in network.transformers().values():
                    attn, norm = transformer.block.attn2, transformer.block.norm2
                    assert attn is not None and attn.to_k is not None and norm is not None
                    for part in (attn.to_q, attn.to_k, norm):
                        part.requires_grad_(False)

    def train_motion(self) -> None:
        """Set up stage 2: train the motion modules, and nothing else."""
        self.requires_grad_(False)
        for _, parameter in self.denoiser.motion_parameters():
            parameter.requires_grad_(True)
        self.fold = self.only_motion = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; networks that are frozen as a whole stay in evaluation mode."""
        super().train(mode)
        if self.only_motion:
            self.reference_net.eval()
            self.pose_guider.eval()
        return self

    def forward(self, noisy: Tensor, timesteps: Tensor, given: Conditions) -> Tensor:
        """Predict the velocity.

        Args:
            noisy: Noisy latents, `[B, F, C, h, w]`.
            timesteps: Timestep of each sample, `[B]`.
            given: Reference, guidance and image token.

        Returns:
            Velocity, `[B, F, C, h, w]`.
        """
        # Features of reference and guidance. In stage 2 they need no gradient, which saves the memory of their
        # activations.
        with torch.no_grad() if self.only_motion else contextlib.nullcontext():
            features = self.reference_net(given.reference, given.token, fold=self.fold)
            pose = self._pose(given.guidance, given.reference_guidance)
        # The features go in as arguments, so that a second forward pass (activation checkpointing) gets the same ones.
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
        if self.pose_guider.normalisation == "frame" or (self.pose_guider.frames_are_independent and not self.training):
            return self.pose_guider(guidance, reference)
        # Published weights normalise over all frames of a call: one call for each sample keeps samples independent.
        alone = [self.pose_guider(guidance[n : n + 1], reference[n : n + 1]) for n in range(len(guidance))]
        return tuple(torch.cat(level) for level in zip(*alone, strict=True))


_SHARED = ("in_channels", "block_out_channels", "layers_per_block", "attention_levels", "cross_attention_dim")
"""Settings that the reference network must have in common with the denoiser, which takes its features."""


def _check_together(denoiser: Denoiser, reference_net: ReferenceNet, pose_guider: PoseGuider) -> None:
    """Raise `ValueError` where the features of one network do not have the sizes that the denoiser takes.

    A folder may hold networks of several trainings; in the first step they would fail with a message about shapes.
    """
    others = [("reference network", reference_net, _SHARED), ("PoseGuider", pose_guider, ("block_out_channels",))]
    for what, network, names in others:
        for name in names:
            wanted, found = (_plain(config[name]) for config in (denoiser.config, network.config))
            if wanted != found:
                raise ValueError(
                    f"the {what} does not go with the denoiser: its {name} is {found}, that of the denoiser {wanted};"
                    " take all networks from one training"
                )


def _plain(setting: object) -> object:
    """Setting as JSON would give it back."""
    return list(setting) if isinstance(setting, list | tuple) else setting
