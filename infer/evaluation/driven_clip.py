"""Clips of a data set prepared for the video pipeline: a reference frame, and landmarks that drive it.

Either a clip drives its own reference frame with its own landmarks, so that the true frames are known; or another clip
drives it, as users do: then there are no true frames, but whether the mouth follows can still be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from infer.metrics.face_reading import MouthReader
from shards.reader import Sample
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.media.image_size import fit_images, fit_landmarks
from talkinghead.motion.annotated import MOTION_COLUMNS, annotated_motion
from talkinghead.motion.gaps import held, held_frames
from talkinghead.motion.motion import Motion
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.retarget import transfer
from talkinghead.timebase import FPS

COLUMNS = ("landmarks", "valid")
"""Annotation columns of a clip that drives itself."""
DRIVER_COLUMNS = ("landmarks", *MOTION_COLUMNS)
"""Annotation columns of clips that drive one another."""
_AROUND = 75  # frames before and after the measured ones that reading the mouth is also fitted to
_MOST_KNOWN = 150  # true frames that reading the mouth is fitted to, at most


@dataclass(frozen=True, kw_only=True)
class DrivenClip:
    """Input of the video pipeline for one clip, and the true result where it is known; images are W x H pixels."""

    key: str
    """Sample key; with another driving clip "<key> by <driver's key>"."""
    reference: np.ndarray
    """Reference frame, `[H, W, 3]` RGB uint8."""
    reference_landmarks: np.ndarray
    """Landmarks of the reference frame, `[468, 2]` x/W, y/H."""
    landmarks: np.ndarray
    """Driving landmarks, `[F, 468, 2]` x/W, y/H; finite: frames without a face repeat the last ones before them."""
    valid: np.ndarray
    """Measured frames, `[F]` bool: with a face, and not the reference itself."""
    truth: np.ndarray | None
    """True frames, `[F, H, W, 3]` RGB uint8; None where another clip drives."""
    audio: np.ndarray
    """Audio of the driving clip, `[F · 640]` float32 at 16 kHz."""
    frames: np.ndarray | None
    """Numbers of the true frames in their clip, `[F]`; None where another clip drives."""
    mouth: MouthReader
    """Reads the mouth opening from pixels; fitted to true frames of the reference's clip."""
    still: int
    """Number of the reference frame in its clip."""

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return len(self.landmarks)


def read_driven_clips(
    samples: Iterable[Sample], width: int, height: int, *, frames: int | None = None
) -> Iterator[DrivenClip]:
    """Clips that drive themselves, one at a time; those without a face are left out.

    Args:
        samples: Samples of a reader with the annotation columns `COLUMNS`.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        frames: Number of frames of each clip, near its middle; None: all.
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
        reference: Sample that the reference frame is taken from, of a reader with the columns `DRIVER_COLUMNS`.
        driver: Driving sample of the same reader; its frames are chosen like those of a clip that drives itself.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        frames: Number of frames of the driving clip, near its middle; None: all.

    Raises:
        ValueError: One of the two shows no face.
    """
    valid, driving = (sample.annotation("valid").astype(bool) for sample in (reference, driver))
    for sample, there in ((reference, valid), (driver, driving)):
        if not there.any():
            raise ValueError(f"{sample.key} shows no face")
    # The reference frame, and a mouth reader fitted to its clip.
    cut = ImageCut.of(reference, width, height)
    own = _own(reference, valid, cut, frames)
    still = own.still
    # Transfer the driver's motion to the reference's face, over the whole clip: its rest pose is found from all frames.
    seen = annotated_motion(
        {name: driver.annotation(name) for name in MOTION_COLUMNS}, width=driver.info.width, height=driver.info.height
    )
    moved = transfer(
        seen.meshes(),
        seen.pose_matrix,
        seen.neutral,
        reference_mesh=reference.annotation("mesh", still, 1)[0],
        reference_pose_matrix=(matrix := reference.annotation("pose_matrix", still, 1)[0]),
    )
    # The motion where the reference's head is. Frames without a face repeat the last one and are not measured.
    window = measured_window(driving, frames)
    motion = Motion(
        pose_matrix=placed_pose(moved.pose, matrix),
        neutral=moved.rest.astype(np.float32),
        mesh=moved.mesh.astype(np.float32),
        valid=driving,
        fps=FPS,
        width=reference.info.width,
        height=reference.info.height,
    )
    motion = held(motion).part(window.start, len(window))
    return DrivenClip(
        key=cross_key(reference, driver),
        reference=own.reference,
        reference_landmarks=own.reference_landmarks,
        landmarks=cut.points(motion.landmarks()),
        valid=motion.valid,
        truth=None,
        audio=driver.audio(window.start, len(window)),
        frames=None,
        mouth=own.mouth,
        still=own.still,
    )


def cross_key(reference: Sample, driver: Sample) -> str:
    """Key of a clip's reference frame that another clip drives."""
    return f"{reference.key} by {driver.key}"


def _own(sample: Sample, valid: np.ndarray, cut: ImageCut, frames: int | None) -> DrivenClip:
    """The clip of one sample, driving itself."""
    # Choose the frames that are measured, and the reference frame.
    window = measured_window(valid, frames)
    still = reference_frame(valid, window)
    # Read landmarks and true images; the frames around the window are only there to fit the mouth reader.
    points = cut.points(sample.annotation("landmarks")[:, :NUM_VERTICES, :2])
    around = range(max(window.start - _AROUND, 0), min(window.stop + _AROUND, len(valid)))
    images = cut.images(sample.video(around.start, len(around)))  # [A, H, W, 3]
    # Place of the window in these images, and frames of them spread evenly for the mouth reader.
    first = window.start - around.start
    known = np.unique(np.linspace(0, len(around) - 1, min(len(around), _MOST_KNOWN)).round().astype(int))
    numbers = np.arange(window.start, window.stop)
    return DrivenClip(
        key=sample.key,
        reference=cut.images(sample.video(still, 1))[0],
        reference_landmarks=points[still],
        landmarks=points[held_frames(valid)][numbers],
        # The reference is an input: measuring it would reward a copy.
        valid=valid[numbers] & (numbers != still),
        truth=images[first : first + len(window)],
        audio=sample.audio(window.start, len(window)),
        frames=numbers,
        mouth=MouthReader.of(images[known], points[around.start + known], around.start + known),
        still=still,
    )


def measured_window(valid: np.ndarray, frames: int | None) -> range:
    """Frames to be measured: the window with the most faces, of several the one nearest the middle."""
    count = min(frames or len(valid), len(valid))
    # Number of faces in the window that begins at each frame, [F - count + 1].
    faces = np.convolve(valid.astype(int), np.ones(count, int), "valid")
    best = np.flatnonzero(faces == faces.max())
    first = int(best[np.abs(best - (len(valid) - count) / 2).argmin()])
    return range(first, first + count)


def reference_frame(valid: np.ndarray, window: range) -> int:
    """Frame with a face that is farthest from the window; the first one with a face if all lie inside."""
    faces = np.flatnonzero(valid)
    away = np.maximum(window.start - faces, faces - (window.stop - 1)).clip(0)  # frames; 0 inside
    return int(faces[away.argmax()])


@dataclass(frozen=True, kw_only=True)
class ImageCut:
    """Cut of a clip's images to another shape, as in training: the middle, resized."""

    clip: tuple[int, int]
    """Width and height of the clip, in pixels."""
    size: tuple[int, int]
    """Width and height of the result, in pixels."""

    @classmethod
    def of(cls, sample: Sample, width: int, height: int) -> ImageCut:
        """Cut of a sample's images to a size in pixels."""
        return cls(clip=(sample.info.width, sample.info.height), size=(width, height))

    def images(self, video: np.ndarray) -> np.ndarray:
        """Frames of the clip, `[F, …, 3]` uint8 → `[F, H, W, 3]`."""
        # `fit_images` takes channels first: [F, 3, …] inside.
        return np.ascontiguousarray(np.moveaxis(fit_images(np.moveaxis(video, 3, 1), *self.size), 1, 3))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Landmarks `[…, 2]` in shares of the clip's image → in shares of the cut image, float32."""
        return fit_landmarks(points.astype(np.float32), self.clip, self.size)
