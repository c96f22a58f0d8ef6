"""Slots of the sample order → samples of Lmk2Video: a target window and a reference of the same clip.

Which frames a sample shows is drawn from (seed, epoch, key). Its images are cropped, and its guidance images drawn, at
the training's own size.

Dimensions: F frames of a window, N frames of a clip; H, W size of images; C, h, w channels and size of latents, so that
guidance images have 8h x 8w pixels; D numbers of the image embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from shards.loader import SlotDataset
from shards.microbatches import Share
from shards.order import SampleOrder
from shards.reader import Part, Sample, ShardReader
from talkinghead import rng
from talkinghead.geometry.face_regions import OUTER_LIPS
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.latents import EMBEDDING, LATENTS, ROWS, unpack_rows
from talkinghead.media.image_size import fit_images, fit_landmarks
from talkinghead.models.lmk2video.pose_guider import GUIDANCE_SCALE
from train.lmk2video.loss import even_timestep

_AT_ONCE = 100
"""Number of frames that are decoded at once when a whole clip is read: at full size they take far more memory than what
is kept of them."""


# --- which frames a sample shows --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """Number of frames and strides of target windows."""

    num_frames: int = 1
    """Number of frames, F."""
    long_stride: int = 1
    """Stride in clip frames of long windows, which show the motion sped up."""
    long_probability: float = 0.0
    """Share of long windows; the others have consecutive frames."""

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.long_stride < 1:
            raise ValueError("num_frames and long_stride must be at least 1")
        if not 0 <= self.long_probability <= 1:
            raise ValueError(f"long_probability must be in 0 … 1, not {self.long_probability}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Frames of one sample, by their numbers in the clip."""

    first: int
    stride: int
    num_frames: int
    reference: int

    @property
    def frames(self) -> np.ndarray:
        """Frames of the target, `[F]`, ascending."""
        return self.first + self.stride * np.arange(self.num_frames)

    @property
    def span(self) -> int:
        """Number of clip frames from the first of the window to its last, both included."""
        return (self.num_frames - 1) * self.stride + 1


def draw_window(valid: np.ndarray, shape: WindowShape, min_gap: int, draw: Callable[[str], float]) -> Window:
    """Choose a window and a reference.

    Windows whose frames all show a face are preferred to others, and so are references with a face. The stride is
    shortened where the clip is too short for it.

    Args:
        valid: Whether each frame of the clip shows a face, `[N]` bool; N is at least `shape.num_frames`.
        shape: Shape of the window.
        min_gap: Smallest distance in frames from the reference to the nearest frame of the window. Where no frame is so
            far away, the farthest ones are chosen from.
        draw: Purpose → a uniform number in [0, 1).

    Returns:
        A window; all that are possible are equally likely.
    """
    # The stride: the long one for its share of the windows, as far as the clip is long enough for it.
    length = len(valid)
    assert length >= shape.num_frames, "clips that are too short are left out"
    stride = shape.long_stride if draw("stride") < shape.long_probability else 1
    if shape.num_frames > 1:
        stride = min(stride, (length - 1) // (shape.num_frames - 1))
    # The window: any start that stays within the clip, preferably one with a face in every frame.
    offsets = stride * np.arange(shape.num_frames)
    starts = np.arange(length - int(offsets[-1]))
    shown = valid[starts[:, None] + offsets].all(axis=1)
    first = _pick(starts[shown] if shown.any() else starts, draw("window"))
    # The reference: far enough from every frame of the window, or as far as the clip allows.
    distance = np.abs(np.arange(length)[:, None] - (first + offsets)).min(axis=1)  # [N]
    faces = np.flatnonzero(valid) if valid.any() else np.arange(length)
    far = faces[distance[faces] >= min(min_gap, int(distance[faces].max()))]
    return Window(first=first, stride=stride, num_frames=shape.num_frames, reference=_pick(far, draw("reference")))


def _pick(choices: np.ndarray, number: float) -> int:
    return int(choices[int(number * len(choices))])


# --- what they show ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Size of the images of a training, in pixels."""

    width: int
    height: int
    factor: int
    """Number of image pixels along the side of a latent pixel."""

    @property
    def latent(self) -> tuple[int, int]:
        """Width and height of the latents, (w, h)."""
        return self.width // self.factor, self.height // self.factor

    @property
    def guidance(self) -> tuple[int, int]:
        """Width and height of the guidance images in pixels, (8w, 8h)."""
        width, height = self.latent
        return width * GUIDANCE_SCALE, height * GUIDANCE_SCALE

    @property
    def frame_bytes(self) -> int:
        """Number of bytes of an image and its guidance image."""
        width, height = self.guidance
        return 3 * (self.width * self.height + width * height)


class ClipImages:
    """Source of images and guidance images of clips, all at one size.

    Args:
        size: Size of images and guidance images.
        keep: Whether to keep what was read and drawn, if there is memory for all clips. A clip is then decoded as a
            whole when its first frame is asked for.
    """

    def __init__(self, size: ImageSize, *, keep: bool = False) -> None:
        self.size = size
        self.keep = keep
        self._images: dict[str, np.ndarray] = {}
        self._drawn: dict[tuple[str, int], np.ndarray] = {}

    def needs(self, sample: Sample) -> bool:
        """Whether the video of a sample is read when images of it are asked for."""
        return sample.key not in self._images

    def images(self, sample: Sample, frames: np.ndarray) -> np.ndarray:
        """Images of frames `[F]`, which are ascending and evenly apart: uint8 `[F, 3, H, W]`."""
        if not self.keep:
            return self._read(sample, frames)
        if sample.key not in self._images:
            self._images[sample.key] = self._read_all(sample)
        return self._images[sample.key][frames]

    def guidance(self, key: str, frames: np.ndarray, placed: np.ndarray) -> np.ndarray:
        """Guidance images of frames `[F]` of a clip with placed landmarks `[F, 478, 3]`: uint8 `[F, 3, 8h, 8w]`."""
        pairs = zip(frames, placed, strict=True)
        return np.stack([self._guide(key, int(frame), points) for frame, points in pairs])

    def _guide(self, key: str, frame: int, placed: np.ndarray) -> np.ndarray:
        place = (key, frame)
        if place in self._drawn:
            return self._drawn[place]
        image = draw_guidance(placed, *self.size.guidance).transpose(2, 0, 1)
        if self.keep:
            self._drawn[place] = image = np.ascontiguousarray(image)
        return image

    def place(self, landmarks: np.ndarray, clip_size: tuple[int, int]) -> np.ndarray:
        """Landmarks of a clip, `[…, 478, 3]`, from shares of its own image (x, y) to shares of the cropped one.

        Args:
            landmarks: Landmarks as they are annotated.
            clip_size: Width and height of the clip in pixels.
        """
        return fit_landmarks(landmarks, clip_size, (self.size.width, self.size.height))

    def _read_all(self, sample: Sample) -> np.ndarray:
        whole = np.empty((sample.num_frames, 3, self.size.height, self.size.width), np.uint8)
        # Part by part: decoded frames have the size of the clip, which may be far larger than what is kept.
        for first in range(0, len(whole), _AT_ONCE):
            part = whole[first : first + _AT_ONCE]
            part[...] = self._read(sample, first + np.arange(len(part)))
        return whole

    def _read(self, sample: Sample, frames: np.ndarray) -> np.ndarray:
        stride = int(frames[1] - frames[0]) if len(frames) > 1 else 1
        assert (np.diff(frames) == stride).all()
        # [F, height, width, 3] as decoded, [F, 3, H, W] as returned.
        video = sample.video(int(frames[0]), len(frames), stride)
        return fit_images(video.transpose(0, 3, 1, 2), self.size.width, self.size.height)


def region_weights(landmarks: np.ndarray, size: tuple[int, int], face: float, mouth: float) -> np.ndarray:
    """Weight of each position of the latents in the loss.

    Args:
        landmarks: Landmarks in shares of the images, `[F, 478, 3]`, NaN where there is no face.
        size: Width and height of the latents, (w, h).
        face: Weight inside the outline of the face, against 1 around it.
        mouth: Further factor inside the outline of the lips.

    Returns:
        Weights, `[F, h, w]` float32. A position that an outline crosses has a weight in between. A frame without a face
        has 1 everywhere.
    """
    # Outlines are filled on a grid eight times as fine as the latents, then averaged down.
    fine = 8
    width, height = size
    result = np.ones((len(landmarks), height, width), np.float32)
    for weights, points in zip(result, landmarks, strict=True):
        if not np.isfinite(points[:, :2]).all():
            continue
        # The face is the convex hull of the 468 points of the mesh (the other ten are the irises); the lips lie on top.
        pixels = np.round(points[:, :2] * (width * fine, height * fine)).astype(np.int32)
        canvas = np.ones((height * fine, width * fine), np.float32)
        cv2.fillConvexPoly(canvas, cv2.convexHull(pixels[:468]), face)
        cv2.fillPoly(canvas, [pixels[list(OUTER_LIPS)]], face * mouth)
        # [8h, 8w] → [h, w]
        weights[...] = canvas.reshape(height, fine, width, fine).mean(axis=(1, 3))
    return result


# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ItemConfig:
    """Content of an item of the data set."""

    size: ImageSize
    window: WindowShape
    min_reference_gap: int = 0
    latents: bool = False
    """Whether latents and embeddings are read instead of images."""
    face_weight: float = 1.0
    mouth_weight: float = 1.0
    keep_in_memory_mb: int = 0

    @property
    def weighs_regions(self) -> bool:
        """Whether the loss weights parts of the image differently."""
        return self.face_weight != 1 or self.mouth_weight != 1


class Lmk2VideoDataset:
    """Items of a training by slot, each a pure function of (data set, config, seed, slot).

    Items: `guidance` uint8 `[F, 3, 8h, 8w]` and `reference_guidance` uint8 `[3, 8h, 8w]`; `target` uint8 `[F, 3, H, W]`
    and `reference` uint8 `[3, H, W]`, or with latents `target_moments` float16 `[F, 2C, h, w]`, `reference_moments`
    `[2C, h, w]` and `reference_embedding` `[D]`; `region` float32 `[F, h, w]` where the loss weights regions; `mask`
    bool `[F]` (False in frames without a face, which do not count), `first` (frame of the clip), `stride`,
    `reference_frame`, `key`, `slot`.

    Args:
        reader: Reader of samples with `landmarks` and `valid`, and with `latents` and `embedding` if those are read.
        config: Content of an item.
        seed: Seed of order and windows.

    Raises:
        ValueError: No sample is long enough.
    """

    def __init__(self, reader: ShardReader, config: ItemConfig, seed: int) -> None:
        self.reader, self.config, self.seed = reader, config, seed
        self.readers = (reader,)
        # Columns of which rows are read; latents are stored in different arrays from version to version.
        latents = (LATENTS, EMBEDDING, ROWS) if config.latents else ()
        self._columns = ("landmarks", *(name for name in latents if f"{name}.npy" in reader.versions.where))
        # Of a store, where landmarks are read with what lies between them. Latents of version 1 lie in two arrays, and
        # the size of their clip in another shard.
        self._requests = 5 if LATENTS in self._columns else 3
        self.samples = np.flatnonzero(reader.num_frames >= config.window.num_frames)
        if not len(self.samples):
            raise ValueError(
                f"none of the {len(reader)} training samples of {reader.storage.uri} has"
                f" {config.window.num_frames} frames: look at make report, or take shorter windows"
            )
        # The order is over the clips that are long enough, so an epoch has each of them once.
        self.order = SampleOrder(len(self.samples), seed)
        needed = int(reader.num_frames[self.samples].sum()) * config.size.frame_bytes
        self.images = ClipImages(config.size, keep=needed <= config.keep_in_memory_mb * 2**20)

    def __len__(self) -> int:
        """Number of samples in an epoch; there are slots after it, too."""
        return len(self.samples)

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot."""
        return self._sample(Share.of(at).slot)[1].key

    def _sample(self, slot: int) -> tuple[int, Sample]:
        """Epoch and sample of a slot."""
        epoch, position = self.order.at(slot)
        return epoch, self.reader[int(self.samples[position])]

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """Item of a slot."""
        epoch, sample = self._sample(slot)
        config, key = self.config, sample.key
        self._fetch_clip(sample)
        valid = sample.annotation("valid").astype(bool)

        def draw(what: str) -> float:
            return rng.uniform(self.seed, what, epoch, key)

        # Which frames: keyed by epoch and clip, so that the choice does not depend on rank, worker or resume.
        window = draw_window(valid, config.window, config.min_reference_gap, draw)
        rows = [part for name in self._columns for part in _parts(name, window)]
        sample.fetch(*self._whole_parts(sample), *rows, requests=self._requests)
        # What they show: latents, or images for the encoder; guidance images always. Landmarks are in shares of the
        # whole clip image, and latents and images show what is cropped out of it.
        if ROWS in self._columns:
            shown, clip_size = _rows(sample, window)
        else:
            shown = _moments(sample, window) if config.latents else self._pixels(sample, window)
            clip_size = (sample.info.width, sample.info.height)
        spans = ((window.first, window.span), (window.reference, 1))
        landmarks, reference = (self.images.place(sample.annotation("landmarks", *span), clip_size) for span in spans)
        landmarks = landmarks[:: window.stride]
        item: dict[str, Any] = {
            "guidance": self.images.guidance(key, window.frames, landmarks),
            "mask": valid[window.frames],
            "reference_guidance": self.images.guidance(key, np.array([window.reference]), reference)[0],
            **shown,
        }
        if config.weighs_regions:
            item["region"] = region_weights(landmarks, config.size.latent, config.face_weight, config.mouth_weight)
        tensors = {name: torch.from_numpy(value) for name, value in item.items()}
        numbers = {"first": window.first, "stride": window.stride, "reference_frame": window.reference}
        return tensors | numbers | {"key": key, "slot": slot}

    def _fetch_clip(self, sample: Sample) -> None:
        """Read `valid`, from which the window is drawn, and what is needed whatever the window is, unless `valid` is
        known: then all is read at once."""
        if sample.always_seen:
            return
        # All landmarks come along where a request for some of them would be one more than there may be.
        more = [Part("landmarks")] if self.config.latents else []
        sample.fetch(Part("valid"), *more, *self._whole_parts(sample), requests=1)

    def _whole_parts(self, sample: Sample) -> list[Part]:
        """What is read of a clip whatever its window is; rows of latents tell the size of the clip themselves."""
        parts = [] if ROWS in self._columns else [Part("info")]
        return [*parts, Part("video")] if not self.config.latents and self.images.needs(sample) else parts

    def _pixels(self, sample: Sample, window: Window) -> dict[str, np.ndarray]:
        target = self.images.images(sample, window.frames)
        return {"target": target, "reference": self.images.images(sample, np.array([window.reference]))[0]}


def _parts(name: str, window: Window) -> list[Part]:
    """Rows of a column that a window needs."""
    reference = Part(name, window.reference, 1)
    return [reference] if name == EMBEDDING else [Part(name, window.first, window.span), reference]


class HeldOutDataset:
    """Items of another data set with a `timestep` each, those of the first so many slots spread over all timesteps.

    Args:
        dataset: Held-out windows.
        count: Number of slots.
    """

    def __init__(self, dataset: SlotDataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def readers(self) -> tuple[ShardReader, ...]:
        """Readers of the samples."""
        return self.dataset.readers

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot."""
        return self.dataset.key(at)

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """Item of a slot."""
        return self.dataset[slot] | {"timestep": even_timestep(slot, self.count)}


def _moments(sample: Sample, window: Window) -> dict[str, np.ndarray]:
    """Moments and embedding of a window, stored as version 1."""
    return {
        "target_moments": sample.annotation(LATENTS, window.first, window.span)[:: window.stride].copy(),
        "reference_moments": sample.annotation(LATENTS, window.reference, 1)[0].copy(),
        "reference_embedding": sample.annotation(EMBEDDING, window.reference, 1)[0].copy(),
    }


def _rows(sample: Sample, window: Window) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """Moments and embedding of a window, stored as version 2, and width and height of the clip in pixels.

    Raises:
        ValueError: The rows are damaged.
    """
    stored = (
        sample.annotation(ROWS, window.first, window.span)[:: window.stride],
        sample.annotation(ROWS, window.reference, 1),
    )
    try:
        target, reference = map(unpack_rows, stored)
    except ValueError as error:
        raise sample.damaged(f"{ROWS}.npy", error) from error
    shown = {
        "target_moments": target.moments(),
        "reference_moments": reference.moments()[0],
        "reference_embedding": reference.embedding[0].copy(),
    }
    return shown, reference.clip_size
