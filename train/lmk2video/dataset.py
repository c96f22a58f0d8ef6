"""Slots of the sample order → samples of Lmk2Video: a target window and a reference of the same clip.

Which frames a sample shows is drawn from (seed, epoch, key); its images and guidance images are cut and drawn at the
training's own size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from shards.order import SampleOrder
from shards.reader import Sample, ShardReader
from talkinghead import rng
from talkinghead.derived import EMBEDDING, LATENTS
from talkinghead.geometry.face_regions import OUTER_LIPS
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.image_size import fit_images, fit_landmarks
from talkinghead.models.lmk2video.pose_guider import GUIDANCE_SCALE

_AT_ONCE = 100
"""Frames that are decoded at once when a whole clip is read: at full size they take much more than what is kept."""


# --- which frames a sample shows --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """Shape of target windows."""

    num_frames: int = 1
    """Frames of a window, F."""
    long_stride: int = 1
    """Frames from one of a window to the next in the windows that show slow motion fast."""
    long_probability: float = 0.0
    """Share of those windows; the others are of consecutive frames."""

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.long_stride < 1:
            raise ValueError("num_frames and long_stride must be at least 1")
        if not 0 <= self.long_probability <= 1:
            raise ValueError(f"long_probability must be in 0 … 1, not {self.long_probability}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Frames of one sample."""

    first: int
    stride: int
    num_frames: int
    reference: int

    @property
    def frames(self) -> np.ndarray:
        """`[F]` frames of the target, ascending."""
        return self.first + self.stride * np.arange(self.num_frames)

    @property
    def span(self) -> int:
        """Frames of the clip from the first of the window to its last."""
        return (self.num_frames - 1) * self.stride + 1


def draw_window(valid: np.ndarray, shape: WindowShape, min_gap: int, draw: Callable[[str], float]) -> Window:
    """Choose a window and a reference.

    Windows whose frames all show a face are preferred to others, and so are references with a face. The stride is
    shortened where the clip is too short for it.

    Args:
        valid: `[N]` bool: frames of the clip that show a face; N is `shape.num_frames` at least.
        shape: Shape of the window.
        min_gap: Frames from the reference to the nearest frame of the window at least; where no frame is so far away,
            the farthest ones are chosen from.
        draw: What for → a uniform number in [0, 1).

    Returns:
        The window; each possible one is equally likely.
    """
    length = len(valid)
    assert length >= shape.num_frames, "clips that are too short are left out"
    stride = shape.long_stride if draw("stride") < shape.long_probability else 1
    if shape.num_frames > 1:
        stride = min(stride, (length - 1) // (shape.num_frames - 1))
    offsets = stride * np.arange(shape.num_frames)
    starts = np.arange(length - int(offsets[-1]))
    shown = valid[starts[:, None] + offsets].all(axis=1)
    first = _pick(starts[shown] if shown.any() else starts, draw("window"))
    distance = np.abs(np.arange(length)[:, None] - (first + offsets)).min(axis=1)
    faces = np.flatnonzero(valid) if valid.any() else np.arange(length)
    far = faces[distance[faces] >= min(min_gap, int(distance[faces].max()))]
    return Window(first=first, stride=stride, num_frames=shape.num_frames, reference=_pick(far, draw("reference")))


def _pick(choices: np.ndarray, number: float) -> int:
    return int(choices[int(number * len(choices))])


# --- what they show ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Size of the images of a training."""

    width: int
    height: int
    factor: int
    """Pixels of an image along the side of a latent."""

    @property
    def latent(self) -> tuple[int, int]:
        """(w, h) of the latents."""
        return self.width // self.factor, self.height // self.factor

    @property
    def guidance(self) -> tuple[int, int]:
        """(width, height) of the guidance images."""
        width, height = self.latent
        return width * GUIDANCE_SCALE, height * GUIDANCE_SCALE

    @property
    def frame_bytes(self) -> int:
        """Bytes of an image and its guidance image."""
        width, height = self.guidance
        return 3 * (self.width * self.height + width * height)


class ClipImages:
    """Reads images of clips, and draws their guidance images.

    Args:
        size: Size of everything.
        keep: Keep what was read and drawn: the caller knows that there is memory for all clips. A clip is then decoded
            as a whole when its first frame is asked for.
    """

    def __init__(self, size: ImageSize, *, keep: bool = False) -> None:
        self.size = size
        self.keep = keep
        self._images: dict[str, np.ndarray] = {}
        self._drawn: dict[tuple[str, int], np.ndarray] = {}

    def images(self, sample: Sample, frames: np.ndarray) -> np.ndarray:
        """Frames `[F]`, ascending and evenly apart → uint8 `[F, 3, H, W]`."""
        if not self.keep:
            return self._read(sample, frames)
        if sample.key not in self._images:
            self._images[sample.key] = self._read_all(sample)
        return self._images[sample.key][frames]

    def guidance(self, sample: Sample, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Frames `[F]` and their landmarks `[F, 478, 3]` → guidance images uint8 `[F, 3, 8h, 8w]`."""
        pairs = zip(frames, landmarks, strict=True)
        return np.stack([self._guide(sample, int(frame), points) for frame, points in pairs])

    def _guide(self, sample: Sample, frame: int, landmarks: np.ndarray) -> np.ndarray:
        place = (sample.key, frame)
        if place in self._drawn:
            return self._drawn[place]
        image = draw_guidance(self.place(sample, landmarks), *self.size.guidance).transpose(2, 0, 1)
        if self.keep:
            self._drawn[place] = image = np.ascontiguousarray(image)
        return image

    def place(self, sample: Sample, landmarks: np.ndarray) -> np.ndarray:
        """Landmarks of a clip `[…, 478, 3]`, x and y in shares of its image → in shares of what is cut out of it."""
        info = sample.info
        return fit_landmarks(landmarks, (info.width, info.height), (self.size.width, self.size.height))

    def _read_all(self, sample: Sample) -> np.ndarray:
        whole = np.empty((sample.num_frames, 3, self.size.height, self.size.width), np.uint8)
        for first in range(0, len(whole), _AT_ONCE):
            part = whole[first : first + _AT_ONCE]
            part[...] = self._read(sample, first + np.arange(len(part)))
        return whole

    def _read(self, sample: Sample, frames: np.ndarray) -> np.ndarray:
        stride = int(frames[1] - frames[0]) if len(frames) > 1 else 1
        assert (np.diff(frames) == stride).all()
        video = sample.video(int(frames[0]), len(frames), stride)
        return fit_images(video.transpose(0, 3, 1, 2), self.size.width, self.size.height)


def region_weights(landmarks: np.ndarray, size: tuple[int, int], face: float, mouth: float) -> np.ndarray:
    """Weight of each position of the latents in the loss.

    Args:
        landmarks: `[F, 478, 3]` in shares of the images, NaN where there is no face.
        size: Width and height of the latents, (w, h).
        face: Weight inside the face's outline, against 1 around it.
        mouth: Inside the lips' outline, times `face`.

    Returns:
        `[F, h, w]` float32; a position that an outline crosses lies between. 1 everywhere without a face.
    """
    fine = 8
    width, height = size
    result = np.ones((len(landmarks), height, width), np.float32)
    for weights, points in zip(result, landmarks, strict=True):
        if not np.isfinite(points[:, :2]).all():
            continue
        pixels = np.round(points[:, :2] * (width * fine, height * fine)).astype(np.int32)
        canvas = np.ones((height * fine, width * fine), np.float32)
        cv2.fillConvexPoly(canvas, cv2.convexHull(pixels[:468]), face)
        cv2.fillPoly(canvas, [pixels[list(OUTER_LIPS)]], face * mouth)
        weights[...] = canvas.reshape(height, fine, width, fine).mean(axis=(1, 3))
    return result


# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ItemConfig:
    """What an item holds."""

    size: ImageSize
    window: WindowShape
    min_reference_gap: int = 0
    latents: bool = False
    """Read latents and embeddings instead of images."""
    face_weight: float = 1.0
    mouth_weight: float = 1.0
    keep_in_memory_mb: int = 0

    @property
    def weighs_regions(self) -> bool:
        """Whether the loss weighs parts of the image differently."""
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
        seed: Seed of order and windows.

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
        self.images = ClipImages(config.size, keep=needed <= config.keep_in_memory_mb * 2**20)

    def __len__(self) -> int:
        """Samples of an epoch; there are slots after it, too."""
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
            "guidance": self.images.guidance(sample, window.frames, landmarks),
            "mask": valid[window.frames],
            **self._reference_guidance(sample, window.reference),
            **(_latents(sample, window) if config.latents else self._pixels(sample, window)),
        }
        if config.weighs_regions:
            placed = self.images.place(sample, landmarks)
            item["region"] = region_weights(placed, config.size.latent, config.face_weight, config.mouth_weight)
        tensors = {name: torch.from_numpy(value) for name, value in item.items()}
        numbers = {"first": window.first, "stride": window.stride, "reference_frame": window.reference}
        return tensors | numbers | {"key": key, "slot": slot}

    def _reference_guidance(self, sample: Sample, frame: int) -> dict[str, np.ndarray]:
        landmarks = sample.annotation("landmarks", frame, 1)
        return {"reference_guidance": self.images.guidance(sample, np.array([frame]), landmarks)[0]}

    def _pixels(self, sample: Sample, window: Window) -> dict[str, np.ndarray]:
        target = self.images.images(sample, window.frames)
        return {"target": target, "reference": self.images.images(sample, np.array([window.reference]))[0]}


def _latents(sample: Sample, window: Window) -> dict[str, np.ndarray]:
    target = sample.annotation(LATENTS, window.first, window.span)[:: window.stride]
    return {
        "target_moments": target.copy(),
        "reference_moments": sample.annotation(LATENTS, window.reference, 1)[0].copy(),
        "reference_embedding": sample.annotation(EMBEDDING, window.reference, 1)[0].copy(),
    }
