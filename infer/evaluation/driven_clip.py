"""Clips of a data set as the video pipeline is tested on them: a reference frame, and landmarks that drive it.

A clip drives its own reference frame with its own landmarks, so that the true frames are known; or another clip drives
it, as users do, and there is no truth but the mouth can be seen to follow or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from infer.metrics.face_reading import MouthReader
from shards.reader import Sample
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.media.image_size import fit_images, fit_landmarks
from talkinghead.motion.landmark_motion import place
from talkinghead.motion.retarget import transfer
from talkinghead.timebase import FPS

COLUMNS = ("landmarks", "valid")
"""Annotation columns of a clip that drives itself."""
DRIVER_COLUMNS = (*COLUMNS, "mesh", "pose_matrix", "blendshapes")
"""Annotation columns of clips that drive one another."""
_AROUND = 75  # frames before and after the measured ones from which to learn how to read the mouth
_MOST_KNOWN = 150


@dataclass(frozen=True, kw_only=True)
class DrivenClip:
    """What the pipeline is asked for, and what is known of the answer. Images are cut and resized to W x H."""

    key: str
    reference: np.ndarray
    """`[H, W, 3]` RGB uint8."""
    reference_landmarks: np.ndarray
    """`[468, 2]` x/W, y/H."""
    landmarks: np.ndarray
    """`[F, 468, 2]` x/W, y/H; finite: in frames without a face the last one stands."""
    valid: np.ndarray
    """`[F]` bool: frames that are measured: with a face, and not the reference itself."""
    truth: np.ndarray | None
    """`[F, H, W, 3]` RGB uint8; None where another clip drives."""
    audio: np.ndarray
    """`[F · 640]` float32 at 16 kHz, of the clip that drives."""
    frames: np.ndarray | None
    """`[F]` numbers of the true frames; None where another clip drives."""
    mouth: MouthReader
    """Learnt from true frames of the reference's clip."""

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.landmarks)


def read_driven_clips(
    samples: Iterable[Sample], width: int, height: int, *, frames: int | None = None
) -> Iterator[DrivenClip]:
    """Clips that drive themselves, one at a time; those without a face are left out.

    Args:
        samples: What a reader of `COLUMNS` gives.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        frames: Frames of each clip, from its middle; None: all.
    """
    for sample in samples:
        valid = sample.annotation("valid").astype(bool)
        if valid.any():
            yield _own(sample, valid, ImageCut.of(sample, width, height), frames)


def read_cross_driven(
    reference: Sample, driver: Sample, width: int, height: int, *, frames: int | None = None
) -> DrivenClip:
    """A clip's reference frame, driven by another clip's expression and head motion.

    Args:
        reference: What a reader of `DRIVER_COLUMNS` gives.
        driver: What the same reader gives; its frames are chosen as those of a clip that drives itself.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        frames: Frames of the driving clip; None: all.

    Raises:
        ValueError: One of the two shows no face.
    """
    valid, driving = (sample.annotation("valid").astype(bool) for sample in (reference, driver))
    for sample, there in ((reference, valid), (driver, driving)):
        if not there.any():
            raise ValueError(f"{sample.key} shows no face")
    # The reference frame, and what its own clip tells of its mouth.
    cut = ImageCut.of(reference, width, height)
    own = _own(reference, valid, cut, frames)
    still = _reference_frame(valid, _window(valid, frames))
    # The driver's motion on the reference's face, over the whole clip, since rest is found from all of it.
    moved = transfer(
        driver.annotation("mesh"),
        driver.annotation("pose_matrix"),
        driver.annotation("blendshapes"),
        reference_mesh=reference.annotation("mesh", still, 1)[0],
        reference_pose_matrix=(matrix := reference.annotation("pose_matrix", still, 1)[0]),
    )
    # Of that, the frames to be measured, where the reference's head is.
    window = _window(driving, frames)
    chosen = slice(window.start, window.stop)
    motion = place(
        held(moved.mesh, driving)[chosen],
        held(moved.pose, driving)[chosen],
        reference_pose_matrix=matrix,
        width=reference.info.width,
        height=reference.info.height,
        fps=FPS,
    )
    return DrivenClip(
        key=f"{reference.key} by {driver.key}",
        reference=own.reference,
        reference_landmarks=own.reference_landmarks,
        landmarks=cut.points(motion.landmarks),
        valid=driving[chosen],
        truth=None,
        audio=driver.audio(window.start, len(window)),
        frames=None,
        mouth=own.mouth,
    )


def _own(sample: Sample, valid: np.ndarray, cut: ImageCut, frames: int | None) -> DrivenClip:
    """A clip that drives itself."""
    # Which frames are measured, and which one is the reference.
    window = _window(valid, frames)
    still = _reference_frame(valid, window)
    # Landmarks and true images, with those around from which reading the mouth is learned.
    points = cut.points(sample.annotation("landmarks")[:, :NUM_VERTICES, :2])
    around = range(max(window.start - _AROUND, 0), min(window.stop + _AROUND, len(valid)))
    images = cut.images(sample.video(around.start, len(around)))
    first = window.start - around.start
    known = np.unique(np.linspace(0, len(around) - 1, min(len(around), _MOST_KNOWN)).round().astype(int))
    numbers = np.arange(window.start, window.stop)
    return DrivenClip(
        key=sample.key,
        reference=cut.images(sample.video(still, 1))[0],
        reference_landmarks=points[still],
        landmarks=held(points, valid)[numbers],
        valid=valid[numbers] & (numbers != still),
        truth=images[first : first + len(window)],
        audio=sample.audio(window.start, len(window)),
        frames=numbers,
        mouth=MouthReader.of(images[known], points[around.start + known], around.start + known),
    )


def _window(valid: np.ndarray, frames: int | None) -> range:
    """The frames to be measured: as many with a face as can be, and of these windows the one nearest the middle."""
    count = min(frames or len(valid), len(valid))
    faces = np.convolve(valid.astype(int), np.ones(count, int), "valid")
    best = np.flatnonzero(faces == faces.max())
    first = int(best[np.abs(best - (len(valid) - count) / 2).argmin()])
    return range(first, first + count)


def _reference_frame(valid: np.ndarray, window: range) -> int:
    """The frame with a face that is farthest from the window; of a whole clip the first one."""
    faces = np.flatnonzero(valid)
    away = np.maximum(window.start - faces, faces - (window.stop - 1)).clip(0)
    return int(faces[away.argmax()])


def held(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`[F, …]` in which every frame that is not valid repeats the last valid one, at the beginning the first."""
    last = np.maximum.accumulate(np.where(valid, np.arange(len(valid)), -1))
    return values[np.where(last < 0, valid.argmax(), last)]


@dataclass(frozen=True, kw_only=True)
class ImageCut:
    """What training sees of a clip whose images have another shape: the middle, in the training's size."""

    clip: tuple[int, int]
    """Width and height of the clip, in pixels."""
    size: tuple[int, int]
    """Width and height of what is made of it, in pixels."""

    @classmethod
    def of(cls, sample: Sample, width: int, height: int) -> ImageCut:
        """For a sample, and the size that is wanted in pixels."""
        return cls(clip=(sample.info.width, sample.info.height), size=(width, height))

    def images(self, video: np.ndarray) -> np.ndarray:
        """Frames of the clip `[F, …, 3]` uint8 → `[F, H, W, 3]`."""
        return np.ascontiguousarray(np.moveaxis(fit_images(np.moveaxis(video, 3, 1), *self.size), 1, 3))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Landmarks `[…, 2]` in shares of the clip's image → in shares of what is cut out of it, float32."""
        return fit_landmarks(points.astype(np.float32), self.clip, self.size)
