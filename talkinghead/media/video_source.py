"""Reads a video's frames in presentation order, upright and with square pixels, from any point on.

Their times are those of the file's timeline (`talkinghead/media/timeline.py`): where its clock jumps or a stamp is
damaged, they are mended. `constant_rate` (`talkinghead/media/frame_clock.py`) resamples them to the project's rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import cast

from av.error import FFmpegError
from av.video.frame import VideoFrame

from talkinghead.media.damage import DamageFinder
from talkinghead.media.deinterlace import deinterlaced
from talkinghead.media.media_file import (
    AudioInfo,
    MediaFile,
    VideoInfo,
    audio_stream,
    describe_audio,
    describe_video,
    first_frame,
    name_of,
    no_frame_error,
    open_media,
    packets_of,
    video_stream,
)
from talkinghead.media.pixels import PixelConverter
from talkinghead.media.source_frame import SourceFrame
from talkinghead.media.timeline import Timeline, read_timeline
from talkinghead.timebase import MAX_STEP_S

_SEEK_MARGINS_S = (0.5, 4.0, 20.0)  # one of these reaches back to a key frame that really decodes; else from the start
_MOST_WAITING = 16  # frames without a time stamp that are held back until the next one with a stamp
_DEFAULT_FRAME_S = 0.04  # duration of a frame where neither the frame nor the container announces one


class VideoSource:
    """An open video file. Use it as a context manager; `frames` may be called several times, one at a time."""

    def __init__(self, file: MediaFile, max_step_s: float = MAX_STEP_S) -> None:
        """Open the file, read its clock, and decode its first frame.

        Args:
            file: The video.
            max_step_s: Largest step from one frame to the next that is no jump of the clock, seconds; no frame is shown
                for longer.

        Raises:
            ValueError: The file is no video, has no video stream, its frames are too large, or none can be decoded;
                the message names it.
        """
        self._file = file
        self._name = name_of(file)
        self._stack = ExitStack()
        self.broken_packets = 0
        """Packets that could not be decoded in the latest call of `frames`."""
        self.damaged_frames = 0
        """Frames that were damaged before they were decoded, in the latest call of `frames`."""
        self._looked_at: dict[int, bool] = {}
        self.timeline: Timeline = read_timeline(file, max_step_s)
        """The file's clock, mended."""
        try:
            self._reopen()
            frame = first_frame(self._container, self._stream)
            if frame is None:
                raise no_frame_error(self._name, self._stream)
            self.info: VideoInfo = describe_video(self._container, self._stream, frame, self._name)
            """The video stream; its times are mended."""
            sound = audio_stream(self._container)
            self.audio: AudioInfo | None = None if sound is None else describe_audio(self._container, sound)
            """The best audio stream, with mended times; None: there is none that can be decoded."""
            # The header knows nothing of jumps.
            if "video" in self.timeline.spans:
                start_s, end_s = self.timeline.spans["video"]
                self.info = replace(self.info, start_s=start_s, end_s=end_s)
            if self.audio is not None and "audio" in self.timeline.spans:
                start_s, end_s = self.timeline.spans["audio"]
                self.audio = replace(self.audio, start_s=start_s, end_s=end_s)
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
        self.broken_packets = self.damaged_frames = 0
        held: SourceFrame | None = None  # the latest frame that is not later than `start_s`
        tolerance = self.info.tick_s / 2  # time stamps are rounded to ticks
        for frame in self._decode_from(start_s):
            if frame.time_s > start_s + tolerance:
                if held is not None:
                    yield self._counted(held)
                    held = None
                yield self._counted(frame)
            else:
                held = frame
        if held is not None:
            yield self._counted(held)

    def _counted(self, frame: SourceFrame) -> SourceFrame:
        self.damaged_frames += frame.damaged
        return frame

    def _decode_from(self, start_s: float) -> Iterator[SourceFrame]:
        """Frames from a point that is not later than `start_s` (or from the first frame)."""
        # From a key frame before it, further and further back until one can be decoded. Where stamps are mended, the
        # file's index is wrong.
        for margin in _SEEK_MARGINS_S if self.timeline.is_plain else ():
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
        self._origin = self.timeline.origin_of(self._container)
        self._mender = self.timeline.mender("video")
        self._is_avi = self._container.format.name == "avi"
        self._first_dts: int | None = None
        self._fresh = True

    def _decode(self) -> Iterator[SourceFrame]:
        """Frames from the file's current position on, with their times."""
        self._fresh = False
        converter = PixelConverter()
        info, tick = self.info, float(cast(Fraction, self._stream.time_base))
        usual_s = 1 / info.fps if info.fps else _DEFAULT_FRAME_S
        times = self._avi_times() if self._is_avi else self._stamped_times()
        for frame, time_s, damaged in times:
            # Its end if nothing follows; some muxers announce too long a last frame.
            duration_s = frame.duration * tick if frame.duration and not self._is_avi else usual_s
            end_s = time_s + min(duration_s, self.timeline.max_step_s)
            if info.end_s is not None and time_s < info.end_s < end_s:
                end_s = info.end_s
            segment = self.timeline.segment_at(time_s + tick / 2)
            yield SourceFrame(frame, info, converter, time_s, end_s, segment=segment, damaged=damaged)

    def _avi_times(self) -> Iterator[tuple[VideoFrame, float, bool]]:
        """Frames, their starts, and whether they are damaged; AVI stores no time stamps, but has a constant rate."""
        time_s, step_s = None, 1 / self.info.fps if self.info.fps else _DEFAULT_FRAME_S
        self._first_dts = None
        for frame, damaged in deinterlaced(self._raw_frames(), self.info.field_order):
            if time_s is None:
                time_s = (self._first_dts or 0) * float(cast(Fraction, self._stream.time_base)) - self._origin
            else:
                time_s += step_s
            yield frame, time_s, damaged

    def _stamped_times(self) -> Iterator[tuple[VideoFrame, float, bool]]:
        """As `_avi_times`, by (mended) time stamps; frames without one share the time between two others."""
        tick = float(cast(Fraction, self._stream.time_base))
        step_s = 1 / self.info.fps if self.timeline.is_plain and self.info.fps else self.timeline.frame_s
        time_s: float | None = None
        waiting: list[tuple[VideoFrame, bool]] = []
        for frame, damaged in deinterlaced(self._raw_frames(), self.info.field_order):
            if frame.pts is None:
                waiting.append((frame, damaged))
                if len(waiting) > _MOST_WAITING:  # a stretch without stamps
                    time_s = self.info.start_s if time_s is None else time_s + step_s
                    other, torn = waiting.pop(0)
                    yield other, time_s, torn
                continue
            now_s = frame.pts * tick - self._origin
            before_s = now_s - (len(waiting) + 1) * step_s if time_s is None else time_s
            for number, (other, torn) in enumerate(waiting, 1):
                yield other, before_s + (now_s - before_s) * number / (len(waiting) + 1), torn
            waiting.clear()
            yield frame, now_s, damaged
            time_s = now_s
        for frame, damaged in waiting:
            time_s = self.info.start_s if time_s is None else time_s + step_s
            yield frame, time_s, damaged

    def _raw_frames(self) -> Iterator[tuple[VideoFrame, bool]]:
        """All frames that can be decoded, in presentation order, and whether each is damaged."""
        finder = DamageFinder(self.info.codec, self._looked_at)
        packets = packets_of(self._container, self._stream)
        ended = False
        while not ended:
            frames: list[VideoFrame] = []
            try:
                packet = next(packets, None)
                if packet is None:
                    break
            except FFmpegError:  # the file ends in the middle: what the decoder still holds comes out
                self.broken_packets += 1
                frames = self._stream.codec_context.decode(None)
                ended = True
            else:
                if self._first_dts is None:
                    self._first_dts = packet.dts
                self._mender.mend(packet)
                finder.packet(packet)
                try:
                    frames = cast(list[VideoFrame], packet.decode())
                except FFmpegError:
                    self.broken_packets += 1
                    finder.broken()
            for frame in frames:
                yield from finder.frame(frame)
        yield from finder.rest()
