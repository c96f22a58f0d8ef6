"""What a file's sound is like as a whole: how its channels go together, and where on the timeline it has any."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import av
import av.container
from av.audio.stream import AudioStream
from av.error import FFmpegError

from talkinghead.media.media_file import MediaFile, name_of, packets_of
from talkinghead.media.mono import ChannelMeter, Mix
from talkinghead.media.sound_frames import SoundFrame, open_sound, seek, sound_frames
from talkinghead.media.sound_runs import MixKey, mix_key
from talkinghead.media.timeline import Timeline

SURVEY_S = 120.0
"""Seconds of sound by which channels are judged: all of a file up to this length, else parts of it."""

_PART_S = 5.0  # of each part of a longer file; the parts lie evenly over it
_PAUSE_S = 0.25  # packets further apart leave a pause that is told; what is lost in between is a matter of damage
_UNCHANGING = ("wav", "w64", "aiff", "au", "caf", "flac", "avi", "mov", "matroska")  # one header for all packets
_KEPT = 8  # files whose mixes are remembered: the pieces and clips of one source follow each other

_cache: OrderedDict[tuple[str, int, int, float], dict[MixKey, Mix]] = OrderedDict()


def read_mixes(file: MediaFile, timeline: Timeline) -> dict[MixKey, Mix]:
    """How the channels of a file become one, for each layout and rate that it has.

    Of the files read last it is remembered, while they stay unchanged.

    Args:
        file: Any audio or video file.
        timeline: Its clock.

    Raises:
        ValueError: The file cannot be opened.
    """
    key = None
    if isinstance(file, Path) and file.is_file():
        facts = file.stat()
        key = (str(file.absolute()), facts.st_size, facts.st_mtime_ns, timeline.max_step_s)
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    mixes = _measured(file, timeline)
    if key is not None:
        _cache[key] = mixes
        if len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return mixes


def _measured(file: MediaFile, timeline: Timeline) -> dict[MixKey, Mix]:
    meters: dict[MixKey, ChannelMeter] = {}
    with open_sound(file) as (container, stream):
        if stream is None or (stream.channels == 1 and container.format.name.startswith(_UNCHANGING)):
            return {}
        for frame in _survey(container, stream, timeline, name_of(file)):
            key = mix_key(frame)
            if key not in meters:
                meters[key] = ChannelMeter(len(frame.samples), frame.layout, frame.rate)
            meters[key].add(frame.samples)
    return {key: meter.mix() for key, meter in meters.items()}


def _survey(
    container: av.container.InputContainer, stream: AudioStream, timeline: Timeline, name: str
) -> Iterator[SoundFrame]:
    """Frames of the whole sound, or of parts that lie evenly over it."""
    length = (container.duration or 0) / av.time_base
    parts = round(SURVEY_S / _PART_S)
    # Where the clock jumps, or cannot be sought, a long file is judged by its start.
    if length <= SURVEY_S or not timeline.is_plain or not seek(container, stream, length / parts):
        yield from _first_seconds(sound_frames(container, stream, timeline, name), SURVEY_S)
        return
    for part in range(parts):
        seek(container, stream, part * length / parts)
        yield from _first_seconds(sound_frames(container, stream, timeline, name), _PART_S)


def _first_seconds(frames: Iterator[SoundFrame], seconds: float) -> Iterator[SoundFrame]:
    left = seconds
    for frame in frames:
        yield frame
        left -= frame.samples.shape[1] / frame.rate
        if left <= 0:
            return


def sound_intervals(file: MediaFile, timeline: Timeline) -> list[tuple[float, float]]:
    """Where a file has sound: start and end of each stretch in seconds on its timeline, in order.

    Known from the packets alone, nothing is decoded: silence that was recorded is sound, and pauses of less than
    0.25 s between packets are none.

    Args:
        file: Any audio or video file.
        timeline: Its clock.

    Raises:
        ValueError: The file cannot be opened.
    """
    found: list[tuple[float, float]] = []
    with open_sound(file) as (container, stream):
        if stream is None:
            return []
        origin, mender = timeline.origin_of(container), timeline.mender("audio")
        packets = packets_of(container, stream)
        end = 0.0
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:
                break  # the file ends in the middle
            if packet is None:
                break
            if mender.mend(packet) is None or packet.is_corrupt or not packet.size:
                continue
            tick = float(packet.time_base or 0)
            begin = end if packet.pts is None else packet.pts * tick - origin
            end = begin + max(0, packet.duration or 0) * tick
            if found and begin <= found[-1][1] + _PAUSE_S:
                found[-1] = found[-1][0], max(found[-1][1], end)
            else:
                found.append((begin, end))
    return [(max(0.0, begin), end) for begin, end in found if end > max(0.0, begin)]
