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
from infer.faces import QUARTERS, turned, upright_turn
from infer.memory_limit import GIGABYTE, memory_limit
from ingest.settings import CutSettings
from ingest.shots import CutDetector
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.media.frame_clock import constant_rate, gap_between
from talkinghead.media.limits import check_sound
from talkinghead.media.source_frame import SourceFrame
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.gaps import bridged, gaps
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import NeutralMesh, neutral_mesh
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
_TURN_FRAMES, _TURN_EVERY = 25, 6  # frames of a video that seems to be turned, and the step between those looked at
_LOOK_EVERY = 12
"""Frames from one count of the faces to the next: about twice a second."""
_MANY_LOOKS = 0.2  # share of the counts with a second face from which on it is no mistake of the detector


@dataclass(frozen=True, kw_only=True)
class DrivingClip:
    """The face in a driving video, frame by frame at 25 fps."""

    path: Path
    """The video file."""
    motion: Motion
    """Motion in the camera of the video, as it is shown; not valid in frames without a face."""
    neutral: NeutralMesh
    """Driving face at rest, and how it was found."""
    blendshapes: np.ndarray
    """Blendshapes, `[F, 52]` float32; NaN without a face, and where the face model has no network for them."""
    has_audio: bool
    """Whether the file has an audio stream."""
    turned_deg: int = 0
    """Degrees clockwise by which the video was turned so that its face is upright."""
    interpolated: int = 0
    """Number of frames that `bridged_clip` interpolated."""

    def __len__(self) -> int:
        return len(self.motion)


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
        shown = _shown(source, limit)
        looked, degrees = _upright(shown, model)
        if degrees:
            log.warning(
                "warning: the face in the driving video %s is %s: the video is turned by %d° first",
                path,
                QUARTERS[degrees],
                degrees,
            )
            width, height = (width, height) if degrees == 180 else (height, width)
        images = _images(itertools.chain(looked, shown), degrees, checks, on_frame)
        found = make_engine(DEFAULT_ENGINE, model)(images if limit is not None else _up_to_longest(images, path))
    points = found.points
    if not len(points):
        raise ValueError(f"the driving video {path} has no frame that can be decoded")
    if not found.valid.any():
        raise ValueError(f"no face was found in the first {len(points)} frames of the driving video {path}")
    checks.warn(path, points)
    # Landmarks of a torn image are anywhere: for a moment without them, `bridged_clip` finds better ones.
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
    valid = np.isfinite(pose_matrix[:, 0, 0])
    neutral = neutral_mesh(mesh, blendshapes, valid)
    return DrivingClip(
        path=path,
        motion=Motion(
            pose_matrix=pose_matrix,
            neutral=neutral.mesh,
            mesh=mesh,
            valid=valid,
            fps=FPS,
            width=width,
            height=height,
        ),
        neutral=neutral,
        blendshapes=blendshapes,
        has_audio=audio is not None,
        turned_deg=degrees,
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
        for begin, end in gaps(usable):
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


def _shown(source: VideoSource, limit: int | None) -> Iterator[tuple[SourceFrame, np.ndarray]]:
    """Frames at 25 fps from 0:00 on, with their images, RGB uint8 `[H, W, 3]`, no larger than `LARGEST_SIDE`."""
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
    for frame in itertools.islice(frames, limit):
        yield frame, frame.image if shrink == 1.0 else frame.reduced(*size)


def _upright(
    shown: Iterator[tuple[SourceFrame, np.ndarray]], model: FaceModel
) -> tuple[list[tuple[SourceFrame, np.ndarray]], int]:
    """The first frames, as many as were looked at, and the turn in degrees clockwise that puts their face upright."""
    looked = list(itertools.islice(shown, 1))
    # Most videos show an upright face at once; in the others a few more frames tell more surely.
    if not looked or upright_turn([looked[0][1]], model) == 0:
        return looked, 0
    looked += itertools.islice(shown, _TURN_FRAMES - 1)
    return looked, upright_turn([image for _, image in looked[::_TURN_EVERY]], model) or 0


def _images(
    shown: Iterator[tuple[SourceFrame, np.ndarray]],
    degrees: int,
    checks: _Checks,
    on_frame: Callable[[int], None] | None,
) -> Iterator[np.ndarray]:
    """Images turned clockwise by `degrees`, RGB uint8, checked on the way."""
    for number, (frame, image) in enumerate(shown, 1):
        upright = turned(image, degrees)
        checks.add(frame, upright)
        yield upright
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


def bridged_clip(clip: DrivingClip) -> DrivingClip:
    """Clip with a face in every frame, see `bridged`. Logs a warning when there were gaps. Blendshapes keep them.

    Raises:
        ValueError: A gap is longer than `LONGEST_GAP_S`; the message tells where it is and what to do.
    """
    valid = clip.motion.valid
    missing = int((~valid).sum())
    if not missing:
        return clip
    # Any gap that is too long is an error, before work is done.
    for begin, end in gaps(valid):
        if (end - begin) / FPS > LONGEST_GAP_S:
            raise ValueError(_too_long(clip, begin, end))
    log.warning(
        "warning: no face in %d of %d frames of %s: its motion is interpolated there", missing, len(clip), clip.path
    )
    motion = bridged(clip.motion)
    # Where no frame has blendshapes, the frames that were filled count in the neutral mesh, too.
    neutral = neutral_mesh(motion.meshes(), clip.blendshapes, motion.valid)
    return replace(clip, motion=replace(motion, neutral=neutral.mesh), neutral=neutral, interpolated=missing)


def _too_long(clip: DrivingClip, begin: int, end: int) -> str:
    """Message for a gap that is too long, with what to do about it."""
    where = f"from {begin / FPS:.2f} to {end / FPS:.2f} s"
    text = f"the driving video {clip.path} shows no face {where}, and no more than {LONGEST_GAP_S:g} s can be bridged: "
    if begin == 0:
        return text + "cut the video so that it begins with the face"
    # Rounded down, so that the part before the gap holds no frame of it.
    before = math.floor(begin / FPS * 100) / 100
    return text + f"take what is before with --limit-seconds {before:g}, or cut the video"
