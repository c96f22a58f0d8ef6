"""What the denoiser predicts of a window of frames: from the portrait, a moving face, and a guidance scale.

Letters of shapes: n frames of a window or block, C channels, h and w height and width of latents or features, H and W
height and width of guidance images in pixels, D width of the image token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talkinghead.geometry.guidance import draw_guidance
from talkinghead.models.lmk2video.denoiser import Begun, Condition, Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.unet_blocks import KeyValue
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout
from talkinghead.pipelines.lmk2video.frames import check_finite
from talkinghead.pipelines.memory import KeepPose, awake


@dataclass(frozen=True, kw_only=True)
class ReferenceConditions:
    """What the denoiser knows of a portrait, computed once for a video of any length."""

    token: Tensor
    """`[1, 1, D]`: CLIP's embedding of the image."""
    projected: Mapping[str, KeyValue]
    """Keys and values of the reference features in each transformer of the denoiser."""

    @classmethod
    def of(cls, reference_net: ReferenceNet, denoiser: Denoiser, latents: Tensor, token: Tensor) -> ReferenceConditions:
        """Look at the portrait.

        Args:
            reference_net: Computes the features.
            denoiser: Whose keys and values are made of them.
            latents: `[1, C, h, w]` of the portrait, clean and scaled.
            token: `[1, 1, D]` of the same image.

        Raises:
            ValueError: The features are not finite, see `check_finite`.
        """
        check_finite(token, "image encoder", reference_net.dtype)
        features = reference_net(latents.to(reference_net.dtype), token.to(reference_net.dtype), fold=True)
        for feature in features.values():
            check_finite(feature, "reference network", reference_net.dtype)
        features = {name: feature.to(denoiser.dtype) for name, feature in features.items()}
        return cls(token=token.to(denoiser.dtype), projected=awake(denoiser).project_reference(features))


GuidanceImages = Callable[[Sequence[int]], np.ndarray]
"""Frames → their guidance images, RGB uint8 `[n, H, W, 3]`."""


def drawn(landmarks: np.ndarray, width: int, height: int) -> GuidanceImages:
    """Guidance images of landmarks `[F, ≥468, ≥2]`, drawn when they are asked for."""
    return lambda frames: np.stack([draw_guidance(landmarks[frame], width, height) for frame in frames])


def as_input(images: np.ndarray, guider: PoseGuider, device: torch.device) -> Tensor:
    """`[n, H, W, 3]` uint8 → `[n, 3, H, W]` in [-1, 1], in the guider's precision."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(device, torch.float32)
    return (pixels / 127.5 - 1.0).to(guider.dtype).contiguous()


class PoseFeatures:
    """Features of any window of a video.

    A guider whose frames are independent sees each frame once, together with the frames of its block; another one (of
    AniPortrait's published weights) sees each window as a whole.

    Args:
        guider: The network.
        images: The guidance images.
        layout: How the windows lie.
        reference: What `PoseGuider.encode_reference` made of the portrait's guidance image; None where the guider has
            no use for it.
        keep: See `KeepPose`.
        device: Where the features are computed and wanted.
    """

    def __init__(
        self,
        guider: PoseGuider,
        images: GuidanceImages,
        layout: WindowLayout,
        *,
        reference: Sequence[Tensor] | None,
        keep: KeepPose,
        device: torch.device,
    ) -> None:
        self._guider = guider
        self._images = images
        self._layout = layout
        self._reference = reference
        self._keep: KeepPose = keep
        self._device = device
        self.by_block = guider.frames_are_independent
        """Whether a frame's features are the same in every window."""
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def window(self, number: int) -> list[Tensor]:
        """Features of a window, for each scale `[1, n, C, h, w]`."""
        if not self.by_block:
            return list(self._features(number, self._layout.windows[number]))
        parts = [self.block(block) for block in self._layout.window_blocks[number]]
        return [torch.cat(scale, dim=1) for scale in zip(*parts, strict=True)]

    def block(self, number: int) -> tuple[Tensor, ...]:
        """Features of a block, for each scale `[1, n, C, h, w]`; not for a guider that sees whole windows."""
        assert self.by_block, "a block has no features of its own"
        return self._features(number, self._layout.blocks[number].frames)

    def release(self, block: int) -> None:
        """Forget what is of no use when this block is finished; blocks are finished in order."""
        if self.by_block:
            self._kept.pop(block, None)
            return
        for window in self._layout.blocks[block].windows:
            if max(self._layout.window_blocks[window]) <= block:
                self._kept.pop(window, None)

    def _features(self, number: int, frames: Sequence[int]) -> tuple[Tensor, ...]:
        if number in self._kept:
            return tuple(feature.to(self._device) for feature in self._kept[number])
        images = as_input(self._images(frames), self._guider, self._device)
        features = self._guider(images[None], self._reference)
        if self._keep != "none":
            place = self._device if self._keep == "device" else torch.device("cpu")
            self._kept[number] = tuple(feature.to(place) for feature in features)
        return features


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
