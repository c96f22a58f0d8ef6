"""A video that drives a portrait: its face in every frame at 25 fps, what to do where there is none, what is odd."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from annotate.engines import DEFAULT_ENGINE, make_engine
from ingest.settings import CutSettings
from ingest.shots import CutDetector
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.media.media_file import probe
from talkinghead.media.video_source import VideoSource, constant_rate
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

LARGEST_SIDE = 1920
"""Larger driving frames are reduced to this before faces are sought in them."""
LONGEST_GAP_S = 1.0
"""A face that is away longer has done what nobody can guess."""

_CHUNK = 500  # frames whose mesh is fitted at once: more would cost memory, not time
_LOOK_EVERY = 12
"""Frames from one count of faces to the next: twice a second."""
_MANY_LOOKS = 0.2  # share of the looks in which there is a second face, from which on it is no mistake of the detector


@dataclass(frozen=True, kw_only=True)
class DrivingClip:
    """The face of a driving video, frame by frame; NaN in frames without a face."""

    path: Path
    mesh: np.ndarray
    """`[F, 468, 3]` float32, cm, canonical space."""
    pose_matrix: np.ndarray
    """`[F, 4, 4]` float64."""
    blendshapes: np.ndarray
    """`[F, 52]` float32; NaN also where the face model has no such network."""
    width: int
    height: int
    has_audio: bool
    interpolated: int = 0
    """Frames that were bridged (`bridged`)."""

    @property
    def valid(self) -> np.ndarray:
        """`[F]` bool: frames with a face."""
        return np.isfinite(self.pose_matrix[:, 0, 0])

    def __len__(self) -> int:
        return len(self.pose_matrix)


def read_driving_clip(
    path: Path, model: FaceModel, *, seconds: float | None = None, on_frame: Callable[[int], None] | None = None
) -> DrivingClip:
    """Find the face in every 25th of a second of a video, as the annotation does.

    Frame 0 is what a player shows at 0:00, so that the video's sound fits. Where the video stream itself begins later,
    its first frame stands until then.

    Args:
        path: Video file, of any size and rate.
        model: Face model.
        seconds: Read no more than this.
        on_frame: Told the number of frames done.

    Raises:
        ValueError: The file cannot be read, or no frame of it has a face.
    """
    has_audio = probe(path).audio is not None
    limit = None if seconds is None else max(1, math.ceil(seconds * FPS))

    # Landmarks of every frame; what is odd about the video is seen in passing.
    checks = _Checks(model)
    with VideoSource(path) as source:
        width, height = source.info.width, source.info.height
        found = make_engine(DEFAULT_ENGINE, model)(_images(source, limit, checks, on_frame))
    points = found.points
    if not len(points):
        raise ValueError(f"the driving video {path} has no frame that can be decoded")
    if not found.valid.any():
        raise ValueError(f"no face was found in the first {len(points)} frames of the driving video {path}")
    checks.warn(path, points)

    # Mesh and pose, fitted to the landmarks.
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
        blendshapes=found.blendshapes,
        width=width,
        height=height,
        has_audio=has_audio,
    )


def _images(
    source: VideoSource, limit: int | None, checks: _Checks, on_frame: Callable[[int], None] | None
) -> Iterator[np.ndarray]:
    """Images at 25 fps from 0:00 on, no larger than `LARGEST_SIDE`."""
    info = source.info
    shrink = min(1.0, LARGEST_SIDE / max(info.width, info.height))
    size = (round(info.width * shrink), round(info.height * shrink))
    shown = constant_rate(source.frames(), info.start_s, None, info.tick_s)
    first = next(shown, None)
    if first is None:
        return
    late = round(info.start_s * FPS)
    frames = itertools.chain(itertools.repeat(first, late + 1), shown)
    for number, frame in enumerate(itertools.islice(frames, limit), 1):
        image = frame.image if shrink == 1.0 else frame.reduced(*size)
        checks.add(image)
        yield image
        if on_frame is not None:
            on_frame(number)


class _Checks:
    """Looks at the frames of a driving video, one after the other, for cuts and for more than one face."""

    def __init__(self, model: FaceModel) -> None:
        self._cuts = CutDetector(CutSettings())
        self._detector = FaceDetector(model)
        self._frames = self._looks = self._several = 0

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, RGB uint8 `[H, W, 3]`."""
        self._cuts.add(frame)
        if self._frames % _LOOK_EVERY == 0:
            self._looks += 1
            self._several += len(self._detector.detect(frame)) > 1
        self._frames += 1

    def warn(self, path: Path, points: np.ndarray) -> None:
        """Say what was seen.

        Args:
            path: The video, for the text.
            points: `[F, N, 3]`: the landmarks that were followed.
        """
        if cuts := self._cuts.cuts():
            times = ", ".join(f"{cut / FPS:.2f}" for cut in cuts[:5]) + (", …" if len(cuts) > 5 else "")
            log.warning(
                "warning: the driving video %s has a cut at %s s: where another face follows, the portrait's is"
                " twisted; take one shot of it (--limit-seconds, or cut the video)",
                path,
                times,
            )
        if self._several > _MANY_LOOKS * self._looks:
            x = float(np.nanmedian(points[:, :, 0]))
            log.warning(
                "warning: the driving video %s shows several faces: the one at %.0f %% of its width drives; crop the"
                " video to take another",
                path,
                100 * x,
            )


def bridged(clip: DrivingClip) -> DrivingClip:
    """The clip with a face in every frame: gaps are interpolated between their neighbours, ends stand still.

    Says so in a warning.

    Raises:
        ValueError: A gap of more than `LONGEST_GAP_S`; says where it is and what to do.
    """
    valid = clip.valid
    missing = int((~valid).sum())
    if not missing:
        return clip
    for begin, end in _gaps(valid):
        if (end - begin) / FPS > LONGEST_GAP_S:
            raise ValueError(_too_long(clip, begin, end))
    pose_matrix = matrix_from_pose(_interpolated(pose_from_matrix(clip.pose_matrix), valid))
    log.warning(
        "warning: no face in %d of %d frames of %s: its motion is interpolated there", missing, len(clip), clip.path
    )
    return replace(clip, mesh=_interpolated(clip.mesh, valid), pose_matrix=pose_matrix, interpolated=missing)


def _gaps(valid: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of frames without a face: the first one, and the first one after them."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], valid, [True])).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _too_long(clip: DrivingClip, begin: int, end: int) -> str:
    where = f"from {begin / FPS:.2f} to {end / FPS:.2f} s"
    text = f"the driving video {clip.path} shows no face {where}, and no more than {LONGEST_GAP_S:g} s can be bridged: "
    if begin == 0:
        return text + "cut the video so that it begins with the face"
    before = math.floor(begin / FPS * 100) / 100
    return text + f"take what is before with --limit-seconds {before:g}, or cut the video"


def _interpolated(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`[F, …]` with the frames that are not valid interpolated linearly in time."""
    frames, seen = np.arange(len(values)), np.flatnonzero(valid)
    after = np.searchsorted(seen, frames).clip(0, len(seen) - 1)
    before = np.where(seen[after] > frames, np.maximum(after - 1, 0), after)
    low, high = seen[before], seen[after]
    share = np.where(high > low, (frames - low) / np.maximum(high - low, 1), 0.0).clip(0, 1)
    share = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    filled = values[low] * (1 - share) + values[high] * share
    filled[valid] = values[valid]
    return filled
