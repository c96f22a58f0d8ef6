"""Reads a video's frames in presentation order, upright and with square pixels, from any point on.

`constant_rate` resamples them to the project's rate, on their presentation time, never by stride or average rate: a
file with a variable rate, a late start or a gap keeps its timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from types import TracebackType
from typing import Protocol, TypeVar, cast

import cv2
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from talkinghead.media.media_file import (
    MediaFile,
    VideoInfo,
    describe_video,
    first_frame,
    name_of,
    no_frame_error,
    open_media,
    start_of,
    video_stream,
)
from talkinghead.media.pixels import ACCURATE, FAST, PixelConverter
from talkinghead.timebase import frame_time, frames_in

# Degrees clockwise that make a frame upright → OpenCV's code for this turn.
_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
_SEEK_MARGINS_S = (0.5, 4.0, 20.0)  # one of these reaches back to a key frame that really decodes; else from the start
_DEFAULT_FRAME_S = 0.04  # duration of a frame where neither the frame nor the container announces one


class Timed(Protocol):
    """Anything with a presentation time."""

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""
        ...

    @property
    def end_s(self) -> float:
        """End in seconds if nothing follows."""
        ...


T = TypeVar("T", bound=Timed)


class SourceFrame:
    """One decoded frame; its pixels are converted when they are asked for."""

    def __init__(
        self, frame: VideoFrame, info: VideoInfo, converter: PixelConverter, time_s: float, end_s: float
    ) -> None:
        self._frame = frame
        self._info = info
        self._converter = converter
        self.time_s = time_s
        """Presentation time, seconds from the start of the file's timeline."""
        self.end_s = end_s
        """End in seconds if nothing follows."""

    @property
    def image(self) -> np.ndarray:
        """RGB uint8 `[height, width, 3]`, upright, square pixels."""
        return self._upright(self._info.width, self._info.height, ACCURATE)

    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """A part of `image`, RGB uint8 `[y1 - y0, x1 - x0, 3]`, at a fraction of the cost.

        The box is `x0 .. x1 - 1`, `y0 .. y1 - 1` in pixels of `image`.
        """
        info, frame = self._info, self._frame
        assert 0 <= x0 < x1 <= info.width and 0 <= y0 < y1 <= info.height, f"{x0, y0, x1, y1} leaves the frame"
        whole = (info.coded_width, info.coded_height) == (frame.width, frame.height)
        if not whole or info.sample_aspect_ratio != 1:
            return self.image[y0:y1, x0:x1]  # scaled: parts have no whole pixels
        # The same box in the frame before its rotation.
        width, height = frame.width, frame.height
        if info.rotation == 90:
            x0, y0, x1, y1 = y0, height - x1, y1, height - x0
        elif info.rotation == 180:
            x0, y0, x1, y1 = width - x1, height - y1, width - x0, height - y0
        elif info.rotation == 270:
            x0, y0, x1, y1 = width - y1, x0, width - y0, x1
        pixels = self._converter.rgb_part(frame, x0, y0, x1, y1)
        turn = _TURNS.get(info.rotation)
        return pixels if turn is None else cv2.rotate(pixels, turn)

    def reduced(self, width: int, height: int) -> np.ndarray:
        """A smaller image for detectors, RGB uint8 `[height, width, 3]`, upright; converted faster and less exactly."""
        return self._upright(width, height, FAST)

    def _upright(self, width: int, height: int, quality: Interpolation) -> np.ndarray:
        """RGB uint8 `[height, width, 3]`: scaled in the conversion, then turned."""
        turn = _TURNS.get(self._info.rotation)
        if self._info.rotation in (90, 270):
            width, height = height, width
        pixels = self._converter.rgb(self._frame, width, height, quality)
        return pixels if turn is None else cv2.rotate(pixels, turn)


class VideoSource:
    """An open video file. Use it as a context manager; `frames` may be called several times, one at a time."""

    def __init__(self, file: MediaFile) -> None:
        """Open the file and decode its first frame.

        Raises:
            ValueError: The file is no video, has no video stream, its frames are too large, or none can be decoded;
                the message names it.
        """
        self._file = file
        self._name = name_of(file)
        self._stack = ExitStack()
        self.broken_packets = 0
        """Packets that could not be decoded in the latest call of `frames`."""
        try:
            self._reopen()
            frame = first_frame(self._container, self._stream)
            if frame is None:
                raise no_frame_error(self._name, self._stream)
            self.info: VideoInfo = describe_video(self._container, self._stream, frame, self._name)
        except BaseException:
            self.close()
            raise
        self._fresh = False  # whether nothing was read since the file was opened

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def frames(self, start_s: float = 0.0) -> Iterator[SourceFrame]:
        """Frames in presentation order, beginning with the one that is shown at `start_s` (seconds on the timeline).

        When the video itself starts later, its first frame comes first. Broken packets are skipped and counted.
        """
        self.broken_packets = 0
        held: SourceFrame | None = None  # the latest frame that is not later than `start_s`
        tolerance = self.info.tick_s / 2  # time stamps are rounded to ticks
        for frame in self._decode_from(start_s):
            if frame.time_s > start_s + tolerance:
                if held is not None:
                    yield held
                    held = None
                yield frame
            else:
                held = frame
        if held is not None:
            yield held

    def _decode_from(self, start_s: float) -> Iterator[SourceFrame]:
        """Frames from a point that is not later than `start_s` (or from the first frame)."""
        # From a key frame before it, further and further back until one can be decoded.
        for margin in _SEEK_MARGINS_S:
            target = start_s - margin
            if target <= self.info.start_s or not self._seek(target):
                break
            frames = self._decode()
            first = next(frames, None)
            if first is not None and first.time_s <= start_s + self.info.tick_s / 2:
                yield first
                yield from frames
                return
        # Near the start, or in a file without an index: from its first frame on.
        self._reopen()
        yield from self._decode()

    def _seek(self, time_s: float) -> bool:
        """Go to a key frame before a point in time; False where the file has no index."""
        # Every try begins with a freshly opened file, in whatever state reading left the demuxer and the decoder.
        if not self._fresh:
            self._reopen()
        self._fresh = False
        tick = cast(Fraction, self._stream.time_base)
        position = int((time_s + self._origin) / tick)
        try:
            self._container.seek(position, backward=True, stream=self._stream)
        except FFmpegError:
            return False  # no index: decode from the start
        return True

    def _reopen(self) -> None:
        """Open the file anew, at its first packet."""
        self._stack.close()
        self._container = self._stack.enter_context(open_media(self._file))
        self._stream = video_stream(self._container, self._name)
        self._origin = start_of(self._container)
        self._is_avi = self._container.format.name == "avi"
        self._first_dts: int | None = None
        self._fresh = True

    def _decode(self) -> Iterator[SourceFrame]:
        """Frames from the file's current position on, with their times."""
        self._fresh = False
        converter = PixelConverter()
        tick = float(cast(Fraction, self._stream.time_base))
        time_s, step_s = None, 1 / self.info.fps if self.info.fps else _DEFAULT_FRAME_S
        self._first_dts = None
        for frame in self._raw_frames():
            # Its start: from the time stamp, or counted on from the frame before.
            if self._is_avi:  # stores no presentation times, but has a constant rate
                if time_s is None:
                    time_s = (self._first_dts or 0) * tick - self._origin
                else:
                    time_s += step_s
            elif frame.pts is not None:
                time_s = frame.pts * tick - self._origin
            else:  # no time stamp: it follows the one before
                time_s = self.info.start_s if time_s is None else time_s + step_s
            # Its end if nothing follows.
            duration_s = frame.duration * tick if frame.duration and not self._is_avi else step_s
            end_s = time_s + duration_s
            if self.info.end_s is not None and time_s < self.info.end_s < end_s:
                end_s = self.info.end_s  # some muxers announce too long a last frame
            yield SourceFrame(frame, self.info, converter, time_s, end_s)

    def _raw_frames(self) -> Iterator[VideoFrame]:
        """All frames that can be decoded, in presentation order."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except FFmpegError:  # the file ends in the middle: what the decoder still holds comes out
                self.broken_packets += 1
                yield from self._stream.codec_context.decode(None)
                return
            if self._first_dts is None:
                self._first_dts = packet.dts
            try:
                yield from cast(list[VideoFrame], packet.decode())
            except FFmpegError:
                self.broken_packets += 1


def constant_rate(frames: Iterable[T], start_s: float, end_s: float | None, tick_s: float) -> Iterator[T]:
    """The source frame that each output frame shows.

    Output frame `k` shows the last source frame with `time_s <= start_s + k/25 + tick_s/2`; half a tick forgives the
    rounding of time stamps. There are as many output frames as whole 25ths fit before the end of the last source frame
    or `end_s`, whichever comes first.

    Args:
        frames: Source frames in presentation order; the first must not be later than `start_s`. A frame that goes back
            in time is left out.
        start_s: Time of output frame 0, seconds.
        end_s: End of the interval, exclusive, seconds; None: to the end of the source.
        tick_s: Resolution of the source's time stamps, seconds.
    """
    limit = None if end_s is None else frames_in(end_s - start_s + tick_s / 2)
    shown: T | None = None
    k = 0
    for frame in frames:
        if shown is not None and frame.time_s < shown.time_s:
            continue
        # The frame before is shown at every output time until this one begins.
        while (
            shown is not None and (limit is None or k < limit) and start_s + frame_time(k) + tick_s / 2 < frame.time_s
        ):
            yield shown
            k += 1
        if limit is not None and k >= limit:
            return
        assert shown is not None or frame.time_s <= start_s + tick_s / 2, "the first frame comes after the start"
        shown = frame
    if shown is None:
        return
    # The last frame is shown until its own end.
    last = frames_in(shown.end_s - start_s + tick_s / 2)
    while k < (last if limit is None else min(last, limit)):
        yield shown
        k += 1
