"""Slots of the sample order → samples of Lmk2Video: a target window and a reference of the same clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shards.order import SampleOrder
from shards.reader import Sample, ShardReader
from talkinghead import rng
from talkinghead.derived import EMBEDDING, LATENTS
from train.lmk2video.clip_pictures import ClipPictures, PictureSize, region_weights
from train.lmk2video.window import Window, WindowShape, draw_window


@dataclass(frozen=True, kw_only=True)
class ItemConfig:
    """What an item holds."""

    size: PictureSize
    window: WindowShape
    min_reference_gap: int = 0
    latents: bool = False
    """Read latents and embeddings instead of pictures."""
    face_weight: float = 1.0
    mouth_weight: float = 1.0
    keep_in_memory_mb: int = 0

    @property
    def weighs_regions(self) -> bool:
        """Whether the loss weighs parts of the picture differently."""
        return self.face_weight != 1 or self.mouth_weight != 1


class Lmk2VideoDataset:
    """Slot → item, a pure function of (data set, config, seed, slot).

    Items: `guidance` uint8 `[F, 3, 8h, 8w]` and `reference_guidance` uint8 `[3, 8h, 8w]`; `target` uint8 `[F, 3, H, W]`
    and `reference` uint8 `[3, H, W]`, or with latents `target_moments` float16 `[F, 2C, h, w]`, `reference_moments`
    `[2C, h, w]` and `reference_embedding` `[D]`; `region` float32 `[F, h, w]` where the loss weighs regions; `mask`
    bool `[F]` (False in frames without a face, which teach nothing), `first` (frame of the clip), `stride`,
    `reference_frame`, `key`, `slot`.

    Args:
        reader: Samples with `landmarks` and `valid`, and `latents` and `embedding` if those are read.
        config: What an item holds.
        seed: Of order and windows.

    Raises:
        ValueError: No sample is long enough.
    """

    def __init__(self, reader: ShardReader, config: ItemConfig, seed: int) -> None:
        self.reader, self.config, self.seed = reader, config, seed
        self.samples = np.flatnonzero(reader.num_frames >= config.window.num_frames)
        if not len(self.samples):
            raise ValueError(
                f"none of the {len(reader)} training samples of {reader.storage.uri} has"
                f" {config.window.num_frames} frames: look at make report, or take shorter windows"
            )
        self.order = SampleOrder(len(self.samples), seed)
        needed = int(reader.num_frames[self.samples].sum()) * config.size.frame_bytes
        self.pictures = ClipPictures(config.size, keep=needed <= config.keep_in_memory_mb * 2**20)

    def __len__(self) -> int:
        """Samples of an epoch; there are slots behind it, too."""
        return len(self.samples)

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """The item of a slot."""
        epoch, position = self.order.at(slot)
        sample = self.reader[int(self.samples[position])]
        valid = sample.annotation("valid").astype(bool)
        config, key = self.config, sample.key

        def draw(what: str) -> float:
            return rng.uniform(self.seed, what, epoch, key)

        window = draw_window(valid, config.window, config.min_reference_gap, draw)
        landmarks = sample.annotation("landmarks", window.first, window.span)[:: window.stride]
        item: dict[str, Any] = {
            "guidance": self.pictures.guidance(sample, window.frames, landmarks),
            "mask": valid[window.frames],
            **self._reference_guidance(sample, window.reference),
            **(_latents(sample, window) if config.latents else self._pixels(sample, window)),
        }
        if config.weighs_regions:
            placed = self.pictures.place(sample, landmarks)
            item["region"] = region_weights(placed, config.size.latent, config.face_weight, config.mouth_weight)
        tensors = {name: torch.from_numpy(value) for name, value in item.items()}
        numbers = {"first": window.first, "stride": window.stride, "reference_frame": window.reference}
        return tensors | numbers | {"key": key, "slot": slot}

    def _reference_guidance(self, sample: Sample, frame: int) -> dict[str, np.ndarray]:
        landmarks = sample.annotation("landmarks", frame, 1)
        return {"reference_guidance": self.pictures.guidance(sample, np.array([frame]), landmarks)[0]}

    def _pixels(self, sample: Sample, window: Window) -> dict[str, np.ndarray]:
        target = self.pictures.pictures(sample, window.frames)
        return {"target": target, "reference": self.pictures.pictures(sample, np.array([window.reference]))[0]}


def _latents(sample: Sample, window: Window) -> dict[str, np.ndarray]:
    target = sample.annotation(LATENTS, window.first, window.span)[:: window.stride]
    return {
        "target_moments": target.copy(),
        "reference_moments": sample.annotation(LATENTS, window.reference, 1)[0].copy(),
        "reference_embedding": sample.annotation(EMBEDDING, window.reference, 1)[0].copy(),
    }
