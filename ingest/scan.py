"""First pass over a clip: which source frame each output frame shows, where shots end, where faces are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from ingest.faces import Box, Detector, Sighting
from ingest.settings import IngestSettings
from ingest.shots import THUMBNAIL, CutDetector
from ingest.transitions import Transition, TransitionDetector
from ingest.upside_down import LOOK_EVERY, Look, look
from talkinghead.media.frame_clock import constant_rate, gap_between
from talkinghead.media.media_file import AudioInfo, VideoInfo
from talkinghead.media.timeline import Timeline

_VIEW = 640  # longer side of the image that the detector gets, pixels
_SMALL = 0.25  # a face smaller than this part of the image's longer side is detected a second time, from nearby
_NEARBY = 1.25  # half the side of the part of the image that is used then, in face sizes


class PartialFrame(Protocol):
    """A source frame of which parts are cut out."""

    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray: ...


class ShownFrame(PartialFrame, Protocol):
    """A source frame: its presentation time, and its pixels on demand."""

    @property
    def time_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def segment(self) -> int: ...
    @property
    def damaged(self) -> bool: ...
    def reduced(self, width: int, height: int) -> np.ndarray: ...


class FrameReader(Protocol):
    """A source of frames: a video file or a folder of images."""

    broken_packets: int

    @property
    def timeline(self) -> Timeline | None: ...
    @property
    def audio(self) -> AudioInfo | None: ...
    @property
    def info(self) -> VideoInfo: ...
    def frames(self, start_s: float = 0.0) -> Iterator[ShownFrame]: ...


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What the first pass found. Frames are output frames at 25 per second."""

    start_s: float
    """Presentation time of frame 0."""
    times: list[float]
    """Presentation time of the source frame that each frame shows, `[F]`."""
    cuts: list[int]
    """Frames that are the first of a new shot, ascending."""
    transitions: list[Transition]
    """Gradual transitions from one shot to another, in order, without overlap."""
    steps: list[float]
    """Difference of each frame from the one before it, mean levels, `[F]`."""
    sightings: list[Sighting]
    """All faces found, in order of frames; boxes in pixels of the source frame."""
    broken_packets: int
    """Packets that the decoder could not read and skipped."""
    segments: list[int]
    """Frames that are the first after a jump of the source's clock, ascending: the clip is split there."""
    damaged: list[int]
    """Frames that show a damaged source frame, ascending."""
    looks: list[Look]
    """What was seen in some of the frames, turned by 180°, in order."""


def clip_frames(reader: FrameReader, start_s: float | None, end_s: float | None) -> tuple[float, Iterator[ShownFrame]]:
    """Presentation time of frame 0 in seconds, and an iterator over the source frame that each output frame shows.

    A clip whose interval begins before the video does starts with the video's first frame.
    """
    wanted = 0.0 if start_s is None else start_s
    frames = reader.frames(wanted)
    head = next(frames, None)
    if head is None:
        return wanted, iter(())
    # Time stamps are rounded to ticks, so a first frame that comes late by less is there in time.
    start = wanted if head.time_s <= wanted + reader.info.tick_s / 2 else head.time_s

    def all_frames() -> Iterator[ShownFrame]:
        yield head
        yield from frames

    return start, constant_rate(all_frames(), start, end_s, reader.info.tick_s)


def scan_clip(
    reader: FrameReader,
    start_s: float | None,
    end_s: float | None,
    region: Box | None,
    detector: Detector,
    settings: IngestSettings,
) -> Scan:
    """Make the first pass over a clip: time stamps, cuts, transitions, and faces in every `detect_every`-th frame.

    Args:
        reader: The source.
        start_s: Start of the interval in seconds; None: start of the video.
        end_s: End of the interval in seconds, exclusive; None: end of the video.
        region: Part of the frame to search (the data set's box), pixels; None: the whole frame.
        detector: Face detector.
        settings: Detection interval and thresholds for cuts and transitions.
    """
    view = _View(reader.info.width, reader.info.height, region)
    cuts = CutDetector(settings.cuts)
    transitions = TransitionDetector(settings.transitions)
    times: list[float] = []
    sightings: list[Sighting] = []
    looks: list[Look] = []
    start, frames = clip_frames(reader, start_s, end_s)
    last: ShownFrame | None = None
    new: ShownFrame | None = None  # the last frame that took part in the search for cuts
    segments: list[int] = []
    damaged: list[int] = []
    image = thumbnail = np.zeros((1, 1, 3), np.uint8)
    for k, frame in enumerate(frames):
        # A slow source repeats frames at 25 fps: each one is converted only once.
        if frame is not last:
            image = view.image(frame)
            thumbnail = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA)
        if last is not None and frame.segment != last.segment:
            segments.append(k)
        if frame.damaged:
            damaged.append(k)
        last = frame
        times.append(frame.time_s)
        # Where frames are missing or repeated, what moves has moved farther: that is no cut.
        if cuts.add(thumbnail, 1.0 if new is None else gap_between(new, frame), damaged=frame.damaged):
            new = frame
        transitions.add(thumbnail, damaged=frame.damaged)
        # A face moves little within `detect_every` frames, and detection costs more than all else here.
        if k % settings.detect_every == 0:
            found = find_faces(detector, image)
            sightings += [Sighting(k, view.to_source(box), score) for box, score in found]
            if k % (LOOK_EVERY * settings.detect_every) == 0:
                looks.append(look(detector, k, image, [box for box, _ in found]))
    return Scan(
        start_s=start,
        times=times,
        cuts=cuts.cuts(),
        transitions=transitions.transitions(),
        steps=cuts.steps,
        sightings=sightings,
        broken_packets=reader.broken_packets,
        segments=segments,
        damaged=damaged,
        looks=looks,
    )


def find_faces(detector: Detector, image: np.ndarray) -> list[tuple[Box, float]]:
    """Boxes of the faces in pixels of the image, and their scores.

    The detector works on few pixels and makes the box of a small face up to 1.6 times too large, so each small face is
    detected again in a part of the image around it.
    """
    height, width = image.shape[:2]
    found = []
    for face in detector.detect(image, small_faces=True):
        box, score = _scaled(face.box, width, height, 0, 0), face.score
        side = max(box[2] - box[0], box[3] - box[1])
        if side < _SMALL * max(width, height):
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            left, top = max(0, int(x - _NEARBY * side)), max(0, int(y - _NEARBY * side))
            # Square around the face, at least one pixel also where the box touches the border: [h, w, 3].
            part = image[top : max(top + 1, int(y + _NEARBY * side)), left : max(left + 1, int(x + _NEARBY * side))]
            near = [_scaled(n.box, part.shape[1], part.shape[0], left, top) for n in detector.detect(part.copy())]
            # Several faces may be in it: the one that covers the centre of the first box is meant.
            holding = [n for n in near if n[0] < x < n[2] and n[1] < y < n[3]]
            box = holding[0] if holding else box
        found.append((box, score))
    return found


def _scaled(box: Box, width: int, height: int, left: int, top: int) -> Box:
    return box[0] * width + left, box[1] * height + top, box[2] * width + left, box[3] * height + top


class _View:
    """A part of the frame, reduced to at most `_VIEW` pixels: the input of the detectors."""

    def __init__(self, width: int, height: int, region: Box | None) -> None:
        x0, y0, x1, y1 = region or (0.0, 0.0, float(width), float(height))
        # The whole frame is reduced and cut afterwards, so the edges are kept in pixels of the reduced frame.
        self._scale = min(1.0, _VIEW / max(x1 - x0, y1 - y0))
        self._width, self._height = (max(1, round(length * self._scale)) for length in (width, height))
        self._left, self._top = int(x0 * self._scale), int(y0 * self._scale)
        self._right = max(self._left + 1, round(x1 * self._scale))
        self._bottom = max(self._top + 1, round(y1 * self._scale))

    def image(self, frame: ShownFrame) -> np.ndarray:
        """The part of a frame as RGB uint8 `[h, w, 3]`, contiguous as the detector wants it."""
        reduced = frame.reduced(self._width, self._height)
        return np.ascontiguousarray(reduced[self._top : self._bottom, self._left : self._right])

    def to_source(self, box: Box) -> Box:
        """A box in pixels of the image, converted to pixels of the frame."""
        x0, y0, x1, y1 = box
        left, top, scale = self._left, self._top, self._scale
        return (x0 + left) / scale, (y0 + top) / scale, (x1 + left) / scale, (y1 + top) / scale
