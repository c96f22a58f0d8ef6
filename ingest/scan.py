"""First pass over a clip: which source frame each output frame shows, where the cuts are, where faces are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ingest.cuts import CutDetector
from ingest.faces import Box, Detector, Sighting
from ingest.settings import IngestSettings
from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.probe import VideoInfo

_VIEW = 640  # longer side of the image that the detectors see


class ShownFrame(Protocol):
    """A source frame: when it is shown, and its pixels."""

    @property
    def time_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray: ...
    def reduced(self, width: int, height: int) -> np.ndarray: ...


class FrameReader(Protocol):
    """A source of frames: a video file or a folder of images."""

    broken_packets: int

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
    steps: list[float]
    sightings: list[Sighting]
    broken_packets: int


def clip_frames(reader: FrameReader, start_s: float | None, end_s: float | None) -> tuple[float, Iterator[ShownFrame]]:
    """Presentation time of frame 0, and the source frame of each output frame.

    A clip whose interval begins before the video does starts with the video's first frame.
    """
    wanted = 0.0 if start_s is None else start_s
    frames = reader.frames(wanted)
    head = next(frames, None)
    if head is None:
        return wanted, iter(())
    start = max(wanted, head.time_s)

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
    """Run the first pass.

    Args:
        reader: The source.
        start_s: Start of the interval; None: of the video.
        end_s: End of the interval; None: of the video.
        region: Part of the frame to look at (the data set's box), pixels; None: all of it.
        detector: Finds faces.
        settings: How often to look, and what is a cut.
    """
    width, height = reader.info.width, reader.info.height
    x0, y0, x1, y1 = region or (0.0, 0.0, float(width), float(height))
    scale = min(1.0, _VIEW / max(x1 - x0, y1 - y0))
    view_w, view_h = max(1, round(width * scale)), max(1, round(height * scale))
    rows = slice(int(y0 * scale), max(int(y0 * scale) + 1, round(y1 * scale)))
    columns = slice(int(x0 * scale), max(int(x0 * scale) + 1, round(x1 * scale)))
    cuts = CutDetector(settings.cuts)
    times: list[float] = []
    sightings: list[Sighting] = []
    start, frames = clip_frames(reader, start_s, end_s)
    last: ShownFrame | None = None
    view = np.zeros((1, 1, 3), np.uint8)
    for k, frame in enumerate(frames):
        if frame is not last:
            view = frame.reduced(view_w, view_h)[rows, columns]
        last = frame
        times.append(frame.time_s)
        cuts.add(view)
        if k % settings.detect_every == 0:
            origin, size = np.array([columns.start, rows.start]), np.array(view.shape[1::-1])
            for face in detector.detect(np.ascontiguousarray(view), small_faces=True):
                x0, y0, x1, y1 = ((np.array(face.box).reshape(2, 2) * size + origin) / scale).ravel().tolist()
                sightings.append(Sighting(k, (x0, y0, x1, y1), face.score))
    return Scan(
        start_s=start,
        times=times,
        cuts=cuts.cuts(),
        steps=cuts.steps,
        sightings=sightings,
        broken_packets=reader.broken_packets,
    )
