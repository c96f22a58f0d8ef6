"""The PoseGuider's features of a video's guidance images: computed when they are first wanted, and kept for long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from talkinghead.geometry.guidance import draw_guidance
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.pipelines.lmk2video.context_windows import WindowLayout
from talkinghead.pipelines.memory import KeepPose

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
        layout: Of the windows.
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
        """Features of a block, likewise; not for a guider that sees whole windows."""
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
