"""Reads frames of a source video with decord, by the times that PyAV has found for them.

decord sees less than `VideoSource` does: no damage, no jumps of the clock, no mirrored or turned images, no fields,
no PQ and HLG. So PyAV looks through the file first, and whatever is not plain is refused here, with the reason.

Frames are the same by construction: each has the number that its time stamp has among those of all packets. Pixels are
not, see `talkinghead/media/decord_frames.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from talkinghead.media.decord_frames import DecordReader
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import VideoInfo, first_frame, no_frame_error, open_media, packets_of, video_stream
from talkinghead.media.timeline import Timeline

HELD_BYTES = 1 << 30
"""Most bytes that the images of a file may have together: decord may hold them all."""

_SAME_MATRIX = (Colorspace.ITU709, Colorspace.ITU601, 6)  # 6: SMPTE 170M, the same numbers as BT.601
_UNLABELLED = 2
_LARGE = 1280  # longer side from which on unlabelled colours are BT.709 for us, and BT.601 for decord
_FLOAT32 = 2**-22  # relative error of decord's times, with a margin


class DecordFrame:
    """One frame of a source; decoded when its pixels are asked for."""

    def __init__(self, reader: DecordReader, number: int, time_s: float) -> None:
        self._reader = reader
        self._number = number
        self.time_s = time_s
        """Presentation time, seconds from the start of the file's timeline."""

    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The part `x0 .. x1 - 1`, `y0 .. y1 - 1` of the frame, RGB uint8 `[y1 - y0, x1 - x0, 3]`."""
        return self._reader.frame(self._number)[y0:y1, x0:x1]


@contextmanager
def decord_frames(
    file: Path, info: VideoInfo, timeline: Timeline, times: Iterable[float], *, damaged: int
) -> Iterator[Iterator[DecordFrame]]:
    """Frames of a plain file at given times; a frame that is shown several times in a row is one object.

    Args:
        file: The video.
        info: Its description by `VideoSource`.
        timeline: Its clock by `VideoSource`.
        times: Presentation times of source frames, as `VideoSource` gives them, ascending.
        damaged: Number of damaged frames and broken packets that `VideoSource` found in all frames of these times.

    Raises:
        ValueError: The file is not plain; the message says why.
    """
    if reason := _why_not_plain(info, timeline, damaged):
        raise _refused(file, reason)
    number_at = _numbers(file, info, timeline)
    with DecordReader(file) as reader:
        _check_same_clock(file, reader, number_at, info)
        yield _shown(file, reader, number_at, times)


def _shown(
    file: Path, reader: DecordReader, number_at: dict[float, int], times: Iterable[float]
) -> Iterator[DecordFrame]:
    frame: DecordFrame | None = None
    for time_s in times:
        if time_s not in number_at:
            raise _refused(file, f"no packet has the time of its frame at {time_s:.3f} s")
        if frame is None or frame.time_s != time_s:
            frame = DecordFrame(reader, number_at[time_s], time_s)
        yield frame


def _why_not_plain(info: VideoInfo, timeline: Timeline, damaged: int) -> str | None:
    """Property of the file that decord does not know; None where there is none."""
    frame_bytes = 3 * info.width * info.height
    found = {
        "its clock jumps": not timeline.is_plain,
        f"{damaged} of its frames or packets are damaged": damaged > 0,
        "its frames are turned or mirrored": bool(info.rotation) or info.mirrored,
        "its pixels are not square": info.sample_aspect_ratio != 1,
        f"its colours are {info.hdr}": info.hdr is not None,
        "it is interlaced": info.interlaced,
        f"its pixel format is {info.pixel_format}, not yuv420p": info.pixel_format != "yuv420p",
        "it has no frame rate": not info.fps,
        f"all its frames together have more than {HELD_BYTES >> 20} MiB": (info.end_s or 0) * (info.fps or 0)
        > HELD_BYTES / frame_bytes,
    }
    return next((reason for reason, holds in found.items() if holds), None)


def _numbers(file: Path, info: VideoInfo, timeline: Timeline) -> dict[float, int]:
    """Presentation time → number of the frame in presentation order, from the packets' time stamps."""
    with open_media(file) as container:
        stream = video_stream(container, str(file))
        origin, tick = timeline.origin_of(container), float(cast(Fraction, stream.time_base))
        frame = first_frame(container, stream)
        if frame is None:
            raise no_frame_error(str(file), stream)
        if reason := _other_colours(frame):
            raise _refused(file, reason)
    stamps: list[int] = []
    with open_media(file) as container:
        for packet in packets_of(container, video_stream(container, str(file))):
            if not packet.size:
                continue
            if packet.pts is None or packet.is_discard:
                raise _refused(file, "not every packet has a time stamp and is shown")
            stamps.append(packet.pts)
    if len(set(stamps)) < len(stamps):
        raise _refused(file, "two packets have the same time stamp")
    if 3 * len(stamps) * info.width * info.height > HELD_BYTES:
        raise _refused(file, f"all its frames together have more than {HELD_BYTES >> 20} MiB")
    return {stamp * tick - origin: number for number, stamp in enumerate(sorted(stamps))}


def _other_colours(frame: VideoFrame) -> str | None:
    """What makes decord's colours others than ours; None where they are the same."""
    if frame.color_range == ColorRange.JPEG:
        return "its colours have full range"
    if frame.colorspace == _UNLABELLED and max(frame.width, frame.height) >= _LARGE:
        return "its colours have no label, and decord takes another matrix for frames of this size"
    if frame.colorspace not in (*_SAME_MATRIX, _UNLABELLED):
        return "its colours have neither BT.709's matrix nor BT.601's"
    return None


def _check_same_clock(file: Path, reader: DecordReader, number_at: dict[float, int], info: VideoInfo) -> None:
    """Refuse a file of which decord has other frames than its packets."""
    times = np.array(list(number_at))
    if len(reader) != len(times):
        raise _refused(file, f"decord finds {len(reader)} frames in {len(times)} packets")
    theirs = reader.times().astype(float)
    apart = np.abs((theirs - theirs[0]) - (times - times[0]))
    if (apart > info.tick_s / 2 + _FLOAT32 * np.abs(theirs).max()).any():
        raise _refused(file, "decord finds other times than its packets have")


def _refused(file: Path, reason: str) -> UnreadableMediaError:
    return UnreadableMediaError("undecodable", f"{file.name} cannot be read with decord: {reason}; take engine=pyav")
