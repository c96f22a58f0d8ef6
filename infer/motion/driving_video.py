"""A driving video: its face in every frame at 25 fps, interpolation of gaps, and warnings about cuts and faces."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from annotate.engines import DEFAULT_ENGINE, make_engine
from infer.memory_limit import GIGABYTE, memory_limit
from ingest.settings import CutSettings
from ingest.shots import CutDetector
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.media.frame_clock import constant_rate, gap_between
from talkinghead.media.limits import check_sound
from talkinghead.media.source_frame import SourceFrame
from talkinghead.media.video_source import VideoSource
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

LARGEST_SIDE = 1920
"""Longest side of the frames in which faces are searched for, pixels; larger frames are reduced."""
LONGEST_S = 20 * 60.0
"""Longest video that is read whole where no length is named, seconds: landmarks and meshes of half a gigabyte."""
LONGEST_GAP_S = 1.0
"""Longest gap without a face that is interpolated; in a longer one the face may have done anything."""

_READING_BYTES = 4 * GIGABYTE  # the frames in the decoder, the landmark networks, and `LONGEST_S` of motion
_FRAME_BYTES = 40_000  # landmarks, mesh and pose of a frame, and their copies
_CHUNK = 500  # frames whose mesh is fitted at once: more would cost memory and save no time
_LOOK_EVERY = 12
"""Frames from one count of the faces to the next: about twice a second."""
_MANY_LOOKS = 0.2  # share of the counts with a second face from which on it is no mistake of the detector


@dataclass(frozen=True, kw_only=True)
class DrivingClip:
    """The face in a driving video, frame by frame at 25 fps; NaN in frames without a face."""

    path: Path
    """The video file."""
    mesh: np.ndarray
    """Mesh, `[F, 468, 3]` float32, cm, canonical space."""
    pose_matrix: np.ndarray
    """Pose of the head, `[F, 4, 4]` float64, cm."""
    blendshapes: np.ndarray
    """Blendshapes, `[F, 52]` float32; NaN also where the face model has no network for them."""
    width: int
    """Width of the video in pixels, as it is shown."""
    height: int
    """Height of the video in pixels."""
    has_audio: bool
    """Whether the file has an audio stream."""
    interpolated: int = 0
    """Number of frames that `bridged` interpolated."""

    @property
    def valid(self) -> np.ndarray:
        """Frames with a face, `[F]` bool."""
        return np.isfinite(self.pose_matrix[:, 0, 0])

    def __len__(self) -> int:
        return len(self.pose_matrix)


def read_driving_clip(
    path: Path, model: FaceModel, *, seconds: float | None = None, on_frame: Callable[[int], None] | None = None
) -> DrivingClip:
    """Find the face in a video at 25 fps, with the landmarks, mesh and pose of the annotation.

    Frame 0 is what a player shows at 0:00, so that the video's sound fits. Where the video stream itself begins later,
    its first frame is shown until then.

    Args:
        path: Video file of any size and rate.
        model: Face model.
        seconds: Most seconds to read; None: the whole video, up to `LONGEST_S`.
        on_frame: Callback with the number of frames done.

    Raises:
        ValueError: The file cannot be read or is too long, or no frame of it has a face.
    """
    limit = None if seconds is None else max(1, math.ceil(seconds * FPS))
    most = round(LONGEST_S * FPS) if limit is None else limit
    with memory_limit(f"the driving video {path}", _READING_BYTES + most * _FRAME_BYTES):
        return _read(path, model, limit, on_frame)


def _read(path: Path, model: FaceModel, limit: int | None, on_frame: Callable[[int], None] | None) -> DrivingClip:
    """As `read_driving_clip`, with the most frames to read in place of seconds."""
    # Landmarks of every frame, [F, N, 3]; cuts and further faces are noticed in the same pass over the images.
    checks = _Checks(model)
    with VideoSource(path) as source:
        if (audio := source.audio) is not None:
            check_sound(str(path), audio.rate, audio.channels)  # it goes into the result, after hours of work
        for note in source.timeline.notes():
            log.warning("warning: the driving video %s: %s", path, note)
        width, height = source.info.width, source.info.height
        images = _images(source, limit, checks, on_frame)
        found = make_engine(DEFAULT_ENGINE, model)(images if limit is not None else _up_to_longest(images, path))
    points = found.points
    if not len(points):
        raise ValueError(f"the driving video {path} has no frame that can be decoded")
    if not found.valid.any():
        raise ValueError(f"no face was found in the first {len(points)} frames of the driving video {path}")
    checks.warn(path, points)
    # Landmarks of a torn image are anywhere: for a moment without them, `bridged` finds better ones.
    blendshapes, unusable = found.blendshapes, _short_damage(checks.damaged, found.valid)
    points[unusable] = blendshapes[unusable] = np.nan

    # Mesh [F, 468, 3] and pose [F, 4, 4], fitted to the landmarks. Landmarks are normalised, so the size of the video
    # and not that of the reduced images counts.
    face = canonical_face(model.geometry_metadata)
    mesh = np.empty((len(points), face.vertices.shape[0], 3), np.float32)
    pose_matrix = np.empty((len(points), 4, 4))
    for first in range(0, len(points), _CHUNK):
        part = slice(first, first + _CHUNK)
        mesh[part], pose_matrix[part] = metric_mesh(points[part], width, height, face)
    return DrivingClip(
        path=path,
        mesh=mesh,
        pose_matrix=pose_matrix,
        blendshapes=blendshapes,
        width=width,
        height=height,
        has_audio=audio is not None,
    )


def _short_damage(damaged: list[bool], valid: np.ndarray) -> np.ndarray:
    """Damaged frames that can be bridged, `[F]` bool: in a longer stretch, poor landmarks are better than none.

    Args:
        damaged: Whether each frame's image was damaged.
        valid: Frames with a face, `[F]` bool.
    """
    usable = valid & ~np.array(damaged, bool)
    unusable = np.zeros(len(usable), bool)
    if usable.any():
        for begin, end in _gaps(usable):
            if (end - begin) / FPS <= LONGEST_GAP_S:
                unusable[begin:end] = True
    return unusable


def _up_to_longest(images: Iterator[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """The images; `ValueError` after `LONGEST_S`: time stamps of a few bytes can announce years."""
    for number, image in enumerate(images):
        if number >= LONGEST_S * FPS:
            raise ValueError(
                f"the driving video {path} is longer than {LONGEST_S:.0f} s, the most that is read whole, or its time"
                " stamps leave a gap: give --limit-seconds with the length that is wanted, or cut it"
            )
        yield image


def _images(
    source: VideoSource, limit: int | None, checks: _Checks, on_frame: Callable[[int], None] | None
) -> Iterator[np.ndarray]:
    """Images at 25 fps from 0:00 on, RGB uint8 `[H, W, 3]`, no larger than `LARGEST_SIDE`."""
    info = source.info
    shrink = min(1.0, LARGEST_SIDE / max(info.width, info.height))
    size = (round(info.width * shrink), round(info.height * shrink))
    shown = constant_rate(source.frames(), info.start_s, None, info.tick_s)
    first = next(shown, None)
    if first is None:
        return
    # A stream that begins late: its first image is repeated, so that frame k stays at k / 25 s.
    late = round(info.start_s * FPS)
    frames = itertools.chain(itertools.repeat(first, late + 1), shown)
    for number, frame in enumerate(itertools.islice(frames, limit), 1):
        image = frame.image if shrink == 1.0 else frame.reduced(*size)
        checks.add(frame, image)
        yield image
        if on_frame is not None:
            on_frame(number)


class _Checks:
    """Checks on the frames of a driving video, one after the other: cuts, more than one face, damage."""

    def __init__(self, model: FaceModel) -> None:
        self._cuts = CutDetector(CutSettings())
        self._detector = FaceDetector(model)
        self._looks = self._several = 0
        self._new: SourceFrame | None = None  # the last frame that is no copy of the one before
        self.damaged: list[bool] = []
        """Whether each frame was damaged before it was decoded."""

    def add(self, frame: SourceFrame, image: np.ndarray) -> None:
        """Take the next frame, and its image, RGB uint8 `[H, W, 3]`."""
        # Where frames are missing or repeated, what moves has moved farther: that is no cut.
        if self._cuts.add(image, 1.0 if self._new is None else gap_between(self._new, frame)):
            self._new = frame
        if len(self.damaged) % _LOOK_EVERY == 0:
            self._looks += 1
            self._several += len(self._detector.detect(image)) > 1
        self.damaged.append(frame.damaged)

    def warn(self, path: Path, points: np.ndarray) -> None:
        """Log a warning for each thing that was noticed.

        Args:
            path: Video file, for the text.
            points: Landmarks that were followed, normalised, `[F, N, 3]`.
        """
        if cuts := self._cuts.cuts():
            times = ", ".join(f"{cut / FPS:.2f}" for cut in cuts[:5]) + (", …" if len(cuts) > 5 else "")
            log.warning(
                "warning: the driving video %s has a cut at %s s: where another face follows, the portrait's is"
                " twisted; take one shot of it (--limit-seconds, or cut the video)",
                path,
                times,
            )
        if damaged := sum(self.damaged):
            log.warning(
                "warning: the driving video %s is damaged in %d of %d frames: its motion is interpolated there, or poor"
                " where that lasts for more than %g s; take another copy of it",
                path,
                damaged,
                len(self.damaged),
                LONGEST_GAP_S,
            )
        if self._several > _MANY_LOOKS * self._looks:
            # The landmarks tell which of the faces was followed: where it is across the image.
            x = float(np.nanmedian(points[:, :, 0]))
            log.warning(
                "warning: the driving video %s shows several faces: the one at %.0f %% of its width drives; crop the"
                " video to take another",
                path,
                100 * x,
            )


def bridged(clip: DrivingClip) -> DrivingClip:
    """Clip with a face in every frame: gaps are interpolated between their neighbours, ends stand still.

    Logs a warning when there were gaps. Blendshapes keep their gaps.

    Raises:
        ValueError: A gap is longer than `LONGEST_GAP_S`; the message tells where it is and what to do.
    """
    valid = clip.valid
    missing = int((~valid).sum())
    if not missing:
        return clip
    # Any gap that is too long is an error, before work is done.
    for begin, end in _gaps(valid):
        if (end - begin) / FPS > LONGEST_GAP_S:
            raise ValueError(_too_long(clip, begin, end))
    # Angles and positions [F, 6] are interpolated, because a mean of rotation matrices is no rotation.
    pose_matrix = matrix_from_pose(_interpolated(pose_from_matrix(clip.pose_matrix), valid))
    log.warning(
        "warning: no face in %d of %d frames of %s: its motion is interpolated there", missing, len(clip), clip.path
    )
    return replace(clip, mesh=_interpolated(clip.mesh, valid), pose_matrix=pose_matrix, interpolated=missing)


def _gaps(valid: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of frames without a face: the first frame of each, and the first frame after it."""
    # With a valid frame added at both ends, falling and rising edges alternate.
    edges = np.flatnonzero(np.diff(np.concatenate(([True], valid, [True])).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _too_long(clip: DrivingClip, begin: int, end: int) -> str:
    """Message for a gap that is too long, with what to do about it."""
    where = f"from {begin / FPS:.2f} to {end / FPS:.2f} s"
    text = f"the driving video {clip.path} shows no face {where}, and no more than {LONGEST_GAP_S:g} s can be bridged: "
    if begin == 0:
        return text + "cut the video so that it begins with the face"
    # Rounded down, so that the part before the gap holds no frame of it.
    before = math.floor(begin / FPS * 100) / 100
    return text + f"take what is before with --limit-seconds {before:g}, or cut the video"


def _interpolated(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Values `[F, …]` in which frames that are not valid are interpolated linearly in time."""
    # For each frame, the nearest valid frames at or before it and at or after it; at the ends both are the same.
    frames, seen = np.arange(len(values)), np.flatnonzero(valid)
    after = np.searchsorted(seen, frames).clip(0, len(seen) - 1)
    before = np.where(seen[after] > frames, np.maximum(after - 1, 0), after)
    low, high = seen[before], seen[after]
    share = np.where(high > low, (frames - low) / np.maximum(high - low, 1), 0.0).clip(0, 1)
    # Broadcast over the trailing dimensions: [F, 1, …].
    share = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    filled = values[low] * (1 - share) + values[high] * share
    filled[valid] = values[valid]
    return filled
