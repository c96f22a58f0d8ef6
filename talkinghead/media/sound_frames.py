"""Decoded sound, frame by frame in the order of the file: plain numbers with a place, a rate and a layout.

What is damaged is told, not hidden: packets that are broken or flagged as damaged leave no frame, and the next frame
says so; samples that are no numbers become silence and are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.container
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError

from talkinghead.media.byte_clock import ByteClock, frame_bytes
from talkinghead.media.limits import DECODER_OPTIONS, check_sound
from talkinghead.media.media_file import MediaFile, audio_stream, open_media, packets_of, start_of
from talkinghead.media.timeline import Timeline

_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_ABSURD = 1e6  # 120 dB over full scale: no recorder writes it, a damaged file of floats does


@dataclass(frozen=True, kw_only=True)
class SoundFrame:
    """Some samples in a row, as a codec handed them out."""

    samples: np.ndarray
    """Channels `[C, n]`, float64, full scale = 1, finite."""
    rate: int
    """Sampling rate, Hz."""
    layout: tuple[str, ...] | None
    """FFmpeg's name of each channel; None: they have none."""
    segment: int
    """Number of the segment of the timeline; time stamps run on within one."""
    begin: int | None
    """Position of the first sample on the timeline, in samples at `rate`; None: right after the frame before."""
    tick: float
    """Resolution of the time stamp, in samples at `rate`."""
    after_damage: bool
    """Whether packets between the frame before and this one could not be decoded."""
    bad: np.ndarray
    """Which of the samples `[k]` were no numbers in some channel, by their place in the frame."""


@contextmanager
def open_sound(file: MediaFile) -> Iterator[tuple[av.container.InputContainer, AudioStream | None]]:
    """A media file, opened at its start, and the best sound in it; None: it has none.

    Raises:
        ValueError: The file cannot be opened.
    """
    if not isinstance(file, Path):
        file.seek(0)  # a stream that was read before
    with open_media(file, "audio") as container:
        yield container, audio_stream(container)


def sound_frames(
    container: av.container.InputContainer, stream: AudioStream, timeline: Timeline, name: str
) -> Iterator[SoundFrame]:
    """All frames that can be decoded, from where the container stands.

    Args:
        container: The file; at its start, unless the timeline is plain.
        stream: Its sound.
        timeline: Its clock.
        name: Name of the file, for messages.

    Raises:
        ValueError: A rate, or a number of channels, that no recording has.
    """
    # Damage is noise at full level where the check sum is not compared. Only FLAC's can be trusted: some encoders of
    # MP3 write wrong ones.
    if stream.codec_context.name == "flac":
        stream.codec_context.options = {**DECODER_OPTIONS, "err_detect": "crccheck+explode"}
    origin = timeline.origin_of(container)
    mender = timeline.mender("audio")
    byte_clock = ByteClock() if container.format.name in ByteClock.FORMATS else None
    packets = packets_of(container, stream)
    damaged, lost = False, 0
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                return
            segment = mender.mend(packet)
            if segment is None:  # sound without images
                continue
            if packet.size and (packet.is_corrupt or not _begins(packet, stream, byte_clock)):
                damaged = True
                continue
            frames = cast(list[AudioFrame], packet.decode())
        except FFmpegError:
            # PyAV ends a stream with an empty packet without dts, which flushes the decoder: after it, nothing comes.
            if packet is None or packet.dts is None:
                return
            damaged = True
            continue
        for frame in frames:
            if frame.is_corrupt:
                damaged = True
                continue
            found = _read(frame, name, origin, segment, damaged)
            if byte_clock is not None and byte_clock.lost_frames != lost:
                found = replace(found, after_damage=True)
                lost = byte_clock.lost_frames
            if lost and found.begin is not None:
                found = replace(found, begin=found.begin + lost * found.samples.shape[1])
            yield found
            damaged = False


def seek(container: av.container.InputContainer, stream: AudioStream, time_s: float) -> bool:
    """Go to a packet at or before a point on the timeline; False: it cannot, and stands at the file's start."""
    if container.format.name in ByteClock.FORMATS:
        return False  # its times are known only from the start on
    tick = cast(Fraction, stream.time_base)
    try:
        # Time stamps of packets need not start at 0, as the timeline does.
        container.seek(int((time_s + start_of(container)) / tick), backward=True, stream=stream)
    except FFmpegError:
        container.seek(0)  # cannot seek there: decode from the start
        return False
    return True


def _read(frame: AudioFrame, name: str, origin: float, segment: int, damaged: bool) -> SoundFrame:
    check_sound(name, frame.sample_rate, frame.layout.nb_channels)
    begin, tick = None, 0.0
    if frame.pts is not None and frame.time_base:
        begin = round((float(frame.pts * frame.time_base) - origin) * frame.sample_rate)
        tick = float(frame.time_base * frame.sample_rate)
    samples, bad = channels_of(frame)
    return SoundFrame(
        samples=samples,
        rate=frame.sample_rate,
        layout=layout_of(frame),
        segment=segment,
        begin=begin,
        tick=tick,
        after_damage=damaged,
        bad=bad,
    )


def _begins(packet: av.Packet, stream: AudioStream, byte_clock: ByteClock | None) -> bool:
    """Whether a packet begins with a frame; a decoder of MP3 would search for one in it, and give it a wrong time."""
    if byte_clock is not None:
        return byte_clock.show(packet)
    mp3 = stream.codec_context.name in ("mp3", "mp3float")
    return not mp3 or frame_bytes(bytes(memoryview(packet)[:8])) is not None


def layout_of(frame: AudioFrame) -> tuple[str, ...] | None:
    """FFmpeg's name of each channel of a decoded frame; None: they have none."""
    names = tuple(channel.name for channel in frame.layout.channels)
    return None if "NONE" in names else names


def channels_of(frame: AudioFrame) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a decoded frame, float64 `[C, N]`, full scale = 1, and which of them `[k]` were no numbers.

    Raises:
        ValueError: More than 8 planar channels.
    """
    kind = np.dtype(_SAMPLE_TYPES[frame.format.name.removesuffix("p")])
    channels = frame.layout.nb_channels
    if frame.format.is_planar:
        if channels > 8:
            raise ValueError(f"audio of {channels} planar channels cannot be read, only up to 8")
        # Not frame.to_ndarray(): PyAV 18.1 reads a plane too many, and crashes, when there are eight.
        planes = [np.frombuffer(cast(bytes, frame.planes[c]), kind, frame.samples) for c in range(channels)]
        values = np.stack(planes)
    else:
        values = np.frombuffer(cast(bytes, frame.planes[0]), kind, frame.samples * channels).reshape(-1, channels).T
    samples = values.astype(np.float64)
    # Unsigned samples are 8 bit only, with silence at 128.
    if kind.kind == "u":
        samples = (samples - 128) / 128
    elif kind.kind == "i":
        samples /= 2.0 ** (8 * kind.itemsize - 1)
    else:
        wrong = ~(np.abs(samples) <= _ABSURD)
        if wrong.any():
            samples[wrong] = 0
            return samples, np.flatnonzero(wrong.any(axis=0))
    return samples, np.zeros(0, np.intp)
