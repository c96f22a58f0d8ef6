"""What the denoiser predicts of a window of frames, guided by the reference portrait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talkinghead.models.lmk2video.denoiser import Begun, Condition, Denoiser
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.spatial_transformer import KeyValue
from talkinghead.pipelines.lmk2video.frames import check_finite
from talkinghead.pipelines.lmk2video.pose_features import PoseFeatures
from talkinghead.pipelines.memory import awake


@dataclass(frozen=True, kw_only=True)
class ReferenceConditions:
    """What the denoiser knows of a portrait, computed once for a video of any length."""

    token: Tensor
    """`[1, 1, D]`: CLIP's embedding of the picture."""
    projected: Mapping[str, KeyValue]
    """Keys and values of the reference features in each transformer of the denoiser."""

    @classmethod
    def of(cls, reference_net: ReferenceNet, denoiser: Denoiser, latents: Tensor, token: Tensor) -> ReferenceConditions:
        """Look at the portrait.

        Args:
            reference_net: Computes the features.
            denoiser: Whose keys and values are made of them.
            latents: `[1, C, h, w]` of the portrait, clean and scaled.
            token: `[1, 1, D]` of the same picture.

        Raises:
            ValueError: The features are not finite, see `check_finite`.
        """
        check_finite(token, "image encoder", reference_net.dtype)
        features = reference_net(latents.to(reference_net.dtype), token.to(reference_net.dtype), fold=True)
        for feature in features.values():
            check_finite(feature, "reference network", reference_net.dtype)
        features = {name: feature.to(denoiser.dtype) for name, feature in features.items()}
        return cls(token=token.to(denoiser.dtype), projected=awake(denoiser).project_reference(features))


@dataclass(frozen=True, kw_only=True)
class GuidedVelocity:
    """The denoiser with a portrait, a moving face and a guidance scale.

    guided = unconditional + scale · (conditional - unconditional) (Ho and Salimans, arXiv 2207.12598). The
    unconditional half has a zero token and no reference, but the same pose: guidance strengthens the portrait, not the
    pose. Each half is computed once, in a call of its own, so neither pays for what only the other one needs; what
    neither portrait nor other frames enter (`Denoiser.begin`) is computed once for both.
    """

    denoiser: Denoiser
    conditions: ReferenceConditions
    pose: PoseFeatures
    guidance_scale: float
    """Up to 1: the conditional half alone."""
    share: bool
    """Begin once for all windows over a block. Costs memory: what was begun waits for the last of them. Not where pose
    features depend on the window."""

    def begin(self, block: int, latents: Tensor, timestep: Tensor) -> Tensor | list[Begun]:
        """See `sampling.WindowNetwork`."""
        if self.share and self.pose.by_block:
            return self._begin(latents, timestep, self.pose.block(block))
        return latents

    def predict(self, window: int, parts: Sequence[Any], timestep: Tensor) -> Tensor:
        """See `sampling.WindowNetwork`; float32. Raises `ValueError` when it is not finite, see `check_finite`."""
        pose = self._cast(self.pose.window(window))
        alone = isinstance(parts[0], Tensor)
        begun = self._begin(torch.cat(list(parts)), timestep, pose) if alone else _joined(parts)
        conditional, *others = (
            self.denoiser(part, timestep, given.token, reference=given.reference, pose=pose, fold=True)[0].float()
            for part, given in zip(begun, self._given, strict=True)
        )
        guided = others[0] + self.guidance_scale * (conditional - others[0]) if others else conditional
        check_finite(guided, "denoiser", self.denoiser.dtype)
        return guided

    @property
    def _given(self) -> list[Condition]:
        token = self.conditions.token
        conditional = Condition(token, self.conditions.projected)
        return [conditional, Condition(torch.zeros_like(token), None)] if self.guidance_scale > 1 else [conditional]

    def _begin(self, latents: Tensor, timestep: Tensor, pose: Sequence[Tensor]) -> list[Begun]:
        noisy = latents[None].to(self.denoiser.dtype)
        return awake(self.denoiser).begin(noisy, timestep, self._given, pose=self._cast(pose), fold=True)

    def _cast(self, pose: Sequence[Tensor]) -> list[Tensor]:
        return [feature.to(self.denoiser.dtype) for feature in pose]


def _joined(parts: Sequence[list[Begun]]) -> list[Begun]:
    """What was begun with blocks of a window, for each condition → the same of the whole window."""
    if len(parts) == 1:
        return parts[0]
    state = torch.cat([part[0].state for part in parts], dim=1)
    return [Begun(state, torch.cat([begun.hidden for begun in each], dim=1)) for each in zip(*parts, strict=True)]
