"""A face that speaks, blinks, or is only a photo, drawn without any model: the portrait of the embedded sample.

Every image comes with landmarks that follow the head, and tremble as those of a network do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np

from ingest.sample.expression import Expression, pose_face
from ingest.sample.portrait import HEAD_CENTRE, portrait_texture
from talkinghead.geometry.canonical import mean_face
from tests.support.media_files import write_video

SIDE = 512
"""Width and height of the images in pixels."""
_SCALE = 3  # of the texture to the portrait that its contours are given in
_LEFT, _TOP = (round(_SCALE * centre) - SIDE // 2 for centre in HEAD_CENTRE)
_PX_PER_CM = 20.0  # the face is some 18 cm high, and 350 pixels here


@dataclass(frozen=True)
class PosedClip:
    """Images, RGB uint8 `[F, 512, 512, 3]`, and landmarks of their faces, `[F, 468, 2]` as fractions of the side."""

    images: list[np.ndarray]
    landmarks: np.ndarray

    def taken(self, frames: Sequence[int]) -> PosedClip:
        """Another order of the frames: some of them, some several times."""
        return PosedClip([self.images[frame] for frame in frames], self.landmarks[list(frames)])

    def changed(self, change: Callable[[int, np.ndarray], np.ndarray]) -> PosedClip:
        """The same with other images; `change` gets the number of each frame and its image."""
        return replace(self, images=[_bytes(change(number, image)) for number, image in enumerate(self.images)])

    def tilted(self, keystone: float) -> PosedClip:
        """Tilted back and forth, as a flat image: its left side is longer and shorter by a share of the side."""
        images, landmarks = [], np.empty_like(self.landmarks)
        corners = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], np.float32)
        for number, image in enumerate(self.images):
            shift = SIDE * keystone / 2 * np.sin(2 * np.pi * number / len(self.images))
            seen = corners + np.array([[shift, -shift], [0, 0], [0, 0], [shift, shift]], np.float32)
            matrix = cv2.getPerspectiveTransform(corners, seen)
            images.append(cv2.warpPerspective(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT))
            points = SIDE * self.landmarks[number].astype(np.float64)
            landmarks[number] = cv2.perspectiveTransform(points[None], matrix)[0] / SIDE
        return PosedClip(images, landmarks)

    def noisy(self, levels: float) -> PosedClip:
        """With noise of so many grey levels, another one in each frame."""
        draws = np.random.default_rng(1)
        return self.changed(lambda _, image: image + draws.normal(0, levels, image.shape))

    def compressed(self, folder: Path, quality: int) -> PosedClip:
        """After H.264 of a quality (crf), and once more as ingest does it."""
        images = self.images
        for number, crf in enumerate((quality, 18)):
            file = write_video(folder / f"{number}.mp4", images, options={"crf": str(crf), "preset": "fast"})
            with av.open(str(file)) as container:
                images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return replace(self, images=images)


@functools.cache
def face_image(opening: float, blink: float) -> np.ndarray:
    """The face with its mouth opened and its eyes closed, each from 0 to 1."""
    posed = pose_face(_texture(), Expression(opening=opening, rounding=0.2, blink=blink))
    return posed[_TOP : _TOP + SIDE, _LEFT : _LEFT + SIDE]


@functools.cache
def _texture() -> np.ndarray:
    return portrait_texture()


def photo(frames: int, moved: np.ndarray | None = None) -> PosedClip:
    """A photo, which is `moved` before the camera: size (factor), turn (degrees), shift (2, pixels), `[F, 4]`."""
    return _filmed([face_image(0.3, 0.0)] * frames, moved)


def talking(frames: int, *, lips: bool = True, eyes: bool = True, moved: np.ndarray | None = None) -> PosedClip:
    """A face that speaks, and blinks every two seconds. The head is as still as no real one."""
    time = np.arange(frames) / 25
    opening = 0.5 - 0.25 * np.cos(2 * np.pi * 3.1 * time) - 0.25 * np.cos(2 * np.pi * 1.3 * time)
    blink = np.maximum(0, 1 - np.abs((time + 1) % 2 - 1.5) / 0.12)
    levels = np.round(np.stack([opening * lips, blink * eyes], axis=1), 2)
    return _filmed([face_image(*row) for row in levels.tolist()], moved)


def shaken(frames: int, px: float = 4.0) -> np.ndarray:
    """The movements of a camera in the hand, for `moved`."""
    draws = np.random.default_rng(2)
    paths = draws.normal(0, 1, (frames + 8, 4)).cumsum(axis=0)
    paths = np.stack([np.convolve(path, np.hanning(9) / 4, "valid") for path in paths.T], axis=1)
    paths = (paths - paths.mean(axis=0)) / paths.std(axis=0)
    return paths * (0.01, 0.8, px, px) + draws.normal(0, 1, paths.shape) * (0, 0, 0.5, 0.5) + (1, 0, 0, 0)


def _filmed(images: Sequence[np.ndarray], moved: np.ndarray | None) -> PosedClip:
    draws = np.random.default_rng(3)
    flat = mean_face().vertices[:, :2] * (1, -1)
    points = SIDE / 2 + _PX_PER_CM * (flat - (flat.min(axis=0) + flat.max(axis=0)) / 2)
    shown, landmarks = [], []
    for number, image in enumerate(images):
        placed = points
        if moved is not None:
            size, turn, *shift = moved[number].tolist()
            matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), turn, size)
            matrix[:, 2] += shift
            image = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            placed = points @ matrix[:, :2].T + matrix[:, 2]
        shown.append(image)
        # A network's landmarks: all of them off by the same, and each by its own.
        landmarks.append(placed + draws.normal(0, 0.5, 2) + draws.normal(0, 0.5, points.shape))
    return PosedClip(shown, np.stack(landmarks) / SIDE)


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).round().astype(np.uint8)
