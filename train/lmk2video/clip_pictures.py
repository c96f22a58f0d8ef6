"""What a training sees of a clip's frames, at its own size: pictures, guidance images, and where the face is."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from shards.reader import Sample
from talkinghead.geometry.face_regions import OUTER_LIPS
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.picture_size import fit_landmarks, fit_pictures
from talkinghead.models.lmk2video.pose_guider import GUIDANCE_SCALE

_AT_ONCE = 100
"""Frames that are decoded at once when a whole clip is read: at full size they take much more than what is kept."""


@dataclass(frozen=True, kw_only=True)
class PictureSize:
    """Of the pictures of a training."""

    width: int
    height: int
    factor: int
    """Pixels of a picture along the side of a latent."""

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
        """Of a picture and its guidance image."""
        width, height = self.guidance
        return 3 * (self.width * self.height + width * height)


class ClipPictures:
    """Reads and draws.

    Args:
        size: Of everything.
        keep: Keep what was read and drawn: the caller knows that there is memory for all clips. A clip is then decoded
            as a whole when its first frame is asked for.
    """

    def __init__(self, size: PictureSize, *, keep: bool = False) -> None:
        self.size = size
        self.keep = keep
        self._pictures: dict[str, np.ndarray] = {}
        self._drawn: dict[tuple[str, int], np.ndarray] = {}

    def pictures(self, sample: Sample, frames: np.ndarray) -> np.ndarray:
        """Frames `[F]`, ascending and evenly apart → uint8 `[F, 3, H, W]`."""
        if not self.keep:
            return self._read(sample, frames)
        if sample.key not in self._pictures:
            self._pictures[sample.key] = self._read_all(sample)
        return self._pictures[sample.key][frames]

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
        """Landmarks of a clip `[…, 478, 3]`, x and y in shares of its picture → in shares of what is cut out of it."""
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
        return fit_pictures(video.transpose(0, 3, 1, 2), self.size.width, self.size.height)


def region_weights(landmarks: np.ndarray, size: tuple[int, int], face: float, mouth: float) -> np.ndarray:
    """Weight of each position of the latents in the loss.

    Args:
        landmarks: `[F, 478, 3]` of the pictures, NaN where there is no face.
        size: (w, h) of the latents.
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
