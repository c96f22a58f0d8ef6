"""Velocity of a window of frames, predicted by the denoiser from a portrait, a moving face and a guidance scale.

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
from talkinghead.pipelines.lmk2video.moving_landmarks import MovingLandmarks
from talkinghead.pipelines.memory import KeepPose, awake, kept_aside


@dataclass(frozen=True, kw_only=True)
class ReferenceConditions:
    """Conditions of the denoiser from a portrait, computed once for a video of any length."""

    token: Tensor
    """Image token `[1, 1, D]`, CLIP's embedding of the portrait."""
    projected: Mapping[str, KeyValue]
    """Keys and values of the reference features, by name of the denoiser's transformer block."""

    @classmethod
    def of(cls, reference_net: ReferenceNet, denoiser: Denoiser, latents: Tensor, token: Tensor) -> ReferenceConditions:
        """Conditions from the portrait's latents and image token.

        Args:
            reference_net: Network that computes the features.
            denoiser: Network whose transformers make keys and values of them.
            latents: Latents of the portrait `[1, C, h, w]`, clean, in the scale of the networks.
            token: Image token of the portrait `[1, 1, D]`.

        Raises:
            ValueError: The features are not finite, see `check_finite`.
        """
        # Checked network by network, so that the error names the one that overflowed.
        check_finite(token, "image encoder", reference_net.dtype)
        features = reference_net(latents.to(reference_net.dtype), token.to(reference_net.dtype), fold=True)
        for feature in features.values():
            check_finite(feature, "reference network", reference_net.dtype)

        # Keys and values once for the whole video, instead of in each window at each step.
        features = {name: feature.to(denoiser.dtype) for name, feature in features.items()}
        return cls(token=token.to(denoiser.dtype), projected=awake(denoiser).project_reference(features))


GuidanceImages = Callable[[Sequence[int]], np.ndarray]
"""Function from numbers of frames to their guidance images, RGB uint8 `[n, H, W, 3]`."""


def drawn(landmarks: np.ndarray | MovingLandmarks, width: int, height: int) -> GuidanceImages:
    """Guidance images that are drawn when they are needed.

    Args:
        landmarks: Landmarks of the video, `[F, ≥468, ≥2]`, x/width and y/height.
        width: Width W of the images in pixels.
        height: Height H of the images in pixels.
    """
    return lambda frames: np.stack([draw_guidance(landmarks[frame], width, height) for frame in frames])


def as_input(images: np.ndarray, guider: PoseGuider, device: torch.device) -> Tensor:
    """Images uint8 `[n, H, W, 3]` as input of the PoseGuider: `[n, 3, H, W]` in [-1, 1], in its precision."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(device, torch.float32)
    return (pixels / 127.5 - 1.0).to(guider.dtype).contiguous()


class PoseFeatures:
    """Pose features of any window of a video.

    A PoseGuider with independent frames gets each frame once, together with the frames of its block. One with the
    normalisation of AniPortrait's published weights gets each window as a whole.

    Args:
        guider: PoseGuider.
        images: Guidance images of the video.
        layout: Layout of the windows.
        reference: Result of `PoseGuider.encode_reference` for the portrait's guidance image; None for a PoseGuider that
            does not attend to it.
        keep: Place where features are kept for the next step.
        device: Device on which features are computed and returned.
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
        # By number of the block or, for a PoseGuider that takes in whole windows, of the window.
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def window(self, number: int) -> list[Tensor]:
        """Pose features of a window, `[1, n, C, h, w]` for each scale."""
        if not self.by_block:
            return list(self._features(number, self._layout.windows[number]))
        parts = [self.block(block) for block in self._layout.window_blocks[number]]
        return [torch.cat(scale, dim=1) for scale in zip(*parts, strict=True)]

    def block(self, number: int) -> tuple[Tensor, ...]:
        """Pose features of a block, `[1, n, C, h, w]` for each scale; only with independent frames."""
        assert self.by_block, "a block has no features of its own"
        return self._features(number, self._layout.blocks[number].frames)

    def release(self, block: int) -> None:
        """Forget features that are not needed any more once this block is finished; blocks are finished in order."""
        if self.by_block:
            self._kept.pop(block, None)
            return
        # A window's features go with the last of its blocks.
        for window in self._layout.blocks[block].windows:
            if max(self._layout.window_blocks[window]) <= block:
                self._kept.pop(window, None)

    def _features(self, number: int, frames: Sequence[int]) -> tuple[Tensor, ...]:
        if number in self._kept:
            return tuple(feature.to(self._device, non_blocking=True) for feature in self._kept[number])
        # First step, or features are not kept: draw the guidance images and compute.
        images = as_input(self._images(frames), self._guider, self._device)
        features = self._guider(images[None], self._reference)
        if self._keep != "none":
            self._kept[number] = tuple(map(kept_aside, features)) if self._keep == "cpu" else tuple(features)
        return features


@dataclass(frozen=True, kw_only=True)
class GuidedVelocity:
    """Classifier-free guidance over windows: a `sampling.WindowNetwork` of denoiser, portrait and moving face.

    guided = unconditional + scale · (conditional - unconditional) (Ho and Salimans, arXiv 2207.12598). The
    unconditional half has a zero token and no reference, but the same pose: guidance strengthens the portrait, not the
    pose. Each half is computed in a call of its own, so neither pays for what only the other one needs. The first
    layers, which depend neither on the portrait nor on other frames (`Denoiser.begin`), are computed once for both.
    """

    denoiser: Denoiser
    """Network that predicts the velocity."""
    conditions: ReferenceConditions
    """Conditions from the portrait."""
    pose: PoseFeatures
    """Pose features of the video."""
    guidance_scale: float
    """Guidance scale; up to 1: only the conditional half is computed."""
    share: bool
    """Whether to begin once for all windows over a block. It costs memory, because the result is kept until the last of
    them is predicted. Without effect where pose features depend on the window."""

    def begin(self, block: int, latents: Tensor, timestep: Tensor) -> Tensor | list[Begun]:
        """Result of `Denoiser.begin` for each condition, where windows share it; otherwise the latents as they are."""
        if self.share and self.pose.by_block:
            return self._begin(latents, timestep, self.pose.block(block))
        return latents

    def predict(self, window: int, parts: Sequence[Any], timestep: Tensor) -> Tensor:
        """Guided velocity of a window, float32 `[n, C, h, w]`.

        Args:
            window: Number of the window.
            parts: Results of `begin` for each block of the window, in order.
            timestep: Timestep of the sampler.

        Raises:
            ValueError: The velocity is not finite, see `check_finite`.
        """
        # The first layers: joined from the blocks where they are shared, otherwise computed for this window.
        pose = self._cast(self.pose.window(window))
        alone = isinstance(parts[0], Tensor)
        begun = self._begin(torch.cat(list(parts)), timestep, pose) if alone else _joined(parts)

        # The rest of the network, in a call for each half.
        conditional, *others = (
            self.denoiser(part, timestep, given.token, reference=given.reference, pose=pose, fold=True)[0].float()
            for part, given in zip(begun, self._given, strict=True)
        )

        # Guidance in float32: the difference of the halves is small, and the scale enlarges its rounding error.
        guided = others[0] + self.guidance_scale * (conditional - others[0]) if others else conditional
        check_finite(guided, "denoiser", self.denoiser.dtype)
        return guided

    @property
    def _given(self) -> list[Condition]:
        """Conditions of the halves: the conditional one and, with guidance, the unconditional one."""
        token = self.conditions.token
        conditional = Condition(token, self.conditions.projected)
        return [conditional, Condition(torch.zeros_like(token), None)] if self.guidance_scale > 1 else [conditional]

    def _begin(self, latents: Tensor, timestep: Tensor, pose: Sequence[Tensor]) -> list[Begun]:
        noisy = latents[None].to(self.denoiser.dtype)  # [1, n, C, h, w]: a video is one sample
        return awake(self.denoiser).begin(noisy, timestep, self._given, pose=self._cast(pose), fold=True)

    def _cast(self, pose: Sequence[Tensor]) -> list[Tensor]:
        return [feature.to(self.denoiser.dtype) for feature in pose]


def _joined(parts: Sequence[list[Begun]]) -> list[Begun]:
    """Results of `Denoiser.begin` for a window, from those of its blocks; one for each condition."""
    if len(parts) == 1:
        return parts[0]
    # The skip state is the same under every condition: joined once, as `Denoiser.begin` computes it once.
    state = torch.cat([part[0].state for part in parts], dim=1)
    return [Begun(state, torch.cat([begun.hidden for begun in each], dim=1)) for each in zip(*parts, strict=True)]
