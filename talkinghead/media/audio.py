"""Audio as float32 mono at 16 kHz: read from any file, and kept in the project's own WAV files.

Audio is cut by samples on the file's presentation timeline. The order matters: decode, mean of the channels (a sum
would clip), resample, then cut. Cutting packets instead would be off by up to a codec frame (23 ms for AAC). Every span
is cut from one grid of 16 kHz samples that starts at the timeline's zero, so a span is equal to that slice of the whole
file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

import av
import av.container
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError

from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import MediaFile, audio_stream, name_of, open_media, start_of
from talkinghead.timebase import SAMPLE_RATE, sample_at

SILENCE_PEAK = 1e-3
"""Audio whose peak stays below this (-60 dB of full scale) counts as silent."""

_PREROLL_S = 0.5  # decoded before a span: codecs with overlapping frames need one or two of them, the resampler 1 ms
_JITTER_S = 0.04  # time stamps may be this far off the running count of samples without meaning a gap
_FILTER = {"filter_size": "64"}  # taps per phase; images at -95 dB, pass band to 7.5 kHz (measured)
_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}

# "RIFF", size, "WAVE"; "fmt ", size, PCM = 1, channels, rate, bytes per second, bytes per sample, bits; "data", size
_WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_WAV_SCALE = 32768  # full scale of 16 bits: -1 is the lowest value, and 1 is one step beyond the highest


@dataclass(frozen=True)
class AudioSpan:
    """A piece of audio of exactly the wanted length."""

    samples: np.ndarray
    """Float32 `[N]`, -1 .. 1, 16 kHz."""
    leading_silence: int
    """Samples of silence before the first sample of the source."""
    trailing_silence: int
    """Samples of silence after the last sample of the source."""
    state: Literal["present", "silent", "missing"]
    """`missing`: no audio stream, or none of its samples lies in the span; `silent`: peak below `SILENCE_PEAK`."""


def read_audio(file: MediaFile, start_s: float, num_samples: int) -> AudioSpan:
    """Audio of the interval that starts at `start_s` on the file's presentation timeline.

    Args:
        file: Any audio or video file.
        start_s: Seconds from the timeline's start (what players show as 0:00).
        num_samples: Number of samples of the result at 16 kHz; silence fills what the source does not cover.

    Raises:
        ValueError: The file cannot be opened.
    """
    first = sample_at(start_s)
    with open_media(file, "audio") as container:
        stream = audio_stream(container)
        if stream is None:
            return _missing(num_samples)
        # A margin on both sides keeps the edges of the resampler's filter out of the span.
        margin = round(_PREROLL_S * SAMPLE_RATE)
        found, offset = _read(container, stream, first - margin, first + num_samples + margin, name_of(file))
    # Cut: the part of the span that the source covers, with silence around it.
    samples = np.zeros(num_samples, np.float32)
    begin, end = max(first, offset), min(first + num_samples, offset + len(found))
    if end <= begin:
        return _missing(num_samples)
    samples[begin - first : end - first] = found[begin - offset : end - offset]
    state = "present" if float(np.abs(samples).max(initial=0.0)) >= SILENCE_PEAK else "silent"
    return AudioSpan(samples, begin - first, first + num_samples - end, state)


def read_whole_audio(file: MediaFile) -> np.ndarray:
    """All audio of a file as float32 mono `[N]` at 16 kHz, from the start of its timeline.

    Raises:
        ValueError: The file cannot be opened, or has no audio that decodes.
    """
    with open_media(file, "audio") as container:
        stream = audio_stream(container)
        if stream is None:
            raise UnreadableMediaError("no_audio", f"{name_of(file)} has no audio stream")
        found, offset = _read(container, stream, None, None, name_of(file))
    if not len(found):
        raise UnreadableMediaError(
            "undecodable", f"{name_of(file)}: nothing of its {stream.codec_context.name} audio can be decoded"
        )
    # A late start becomes silence; samples before the timeline's zero are dropped.
    return np.concatenate([np.zeros(max(0, offset), np.float32), found[max(0, -offset) :]])


def _missing(num_samples: int) -> AudioSpan:
    return AudioSpan(np.zeros(num_samples, np.float32), num_samples, 0, "missing")


def _read(
    container: av.container.InputContainer, stream: AudioStream, first: int | None, last: int | None, name: str
) -> tuple[np.ndarray, int]:
    """Mono audio around the samples `first .. last` of the 16 kHz grid, and the grid position of its first sample."""
    # Decode at the source's own rate, from a little before the span on.
    begin_s = None if first is None else first / SAMPLE_RATE
    if begin_s is not None and begin_s - _PREROLL_S > 0:
        _seek(container, stream, begin_s - _PREROLL_S)
    end_s = None if last is None else last / SAMPLE_RATE
    native, position, rate = _collect(_frames(container, stream), start_of(container), begin_s, end_s, name)
    if not len(native):
        return np.zeros(0, np.float32), 0

    # The resampler puts its first output on its first input, so the input must start where both grids meet: they do
    # so every `block` samples of the source (441 at 44.1 kHz, 3 at 48 kHz).
    common = math.gcd(rate, SAMPLE_RATE)
    block = rate // common
    lead = position % block
    padded = np.concatenate([np.zeros(lead, np.float32), native])
    offset = (position - lead) // block * (SAMPLE_RATE // common)

    # Resample, and leave out what that start added.
    skip = -(-lead * SAMPLE_RATE // rate)
    total = len(padded) * SAMPLE_RATE // rate
    return _resample(padded, rate)[skip:total], offset + skip


def _seek(container: av.container.InputContainer, stream: AudioStream, time_s: float) -> None:
    """Go to a packet at or before a point on the timeline, or to the file's start where it cannot be sought in."""
    tick = cast(Fraction, stream.time_base)
    try:
        # Time stamps of packets need not start at 0, as the timeline does.
        container.seek(int((time_s + start_of(container)) / tick), backward=True, stream=stream)
    except FFmpegError:
        container.seek(0)  # cannot seek there: decode from the start


def _frames(container: av.container.InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """All frames that can be decoded; broken packets become gaps."""
    packets = container.demux(stream)
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = cast(list[AudioFrame], packet.decode())
        except FFmpegError:
            # PyAV ends a stream with an empty packet without dts, which flushes the decoder: after it, nothing comes.
            if packet is None or packet.dts is None:
                return
            continue
        yield from frames


def _collect(
    frames: Iterator[AudioFrame], origin: float, begin_s: float | None, end_s: float | None, name: str
) -> tuple[np.ndarray, int, int]:
    """Mono samples `[N]` at the source's rate, the position of the first one on the timeline in samples, the rate.

    Gaps in the time stamps become silence, overlaps are cut, jitter is ignored.
    """
    parts: list[np.ndarray] = []
    position = expected = rate = 0  # `expected`: where the next sample lies if the time stamps leave no gap
    for frame in frames:
        # One rate per file: the frames share one grid of samples.
        if not parts:
            rate = frame.sample_rate
        elif frame.sample_rate != rate:
            raise ValueError(f"{name}: its audio changes from {rate} to {frame.sample_rate} Hz in the middle")
        # Where the frame begins: by its time stamp, else right after the one before.
        begin = expected
        if frame.pts is not None and frame.time_base:
            begin = round((float(frame.pts * frame.time_base) - origin) * rate)
        if end_s is not None and begin >= end_s * rate:
            break
        # Join it to the samples so far.
        mono = to_mono(frame)
        if not parts:
            if begin_s is not None and begin + len(mono) <= begin_s * rate:
                continue  # before the span, but the codec needed it
            position = expected = begin
        elif begin - expected > _JITTER_S * rate:
            parts.append(np.zeros(begin - expected, np.float32))
            expected = begin
        elif expected - begin > _JITTER_S * rate:
            mono = mono[expected - begin :]
        parts.append(mono)
        expected += len(mono)
    return (np.concatenate(parts) if parts else np.zeros(0, np.float32)), position, rate


def to_mono(frame: AudioFrame) -> np.ndarray:
    """Mean of the channels of a decoded frame, float32 `[N]`, full scale = 1.

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
        values = np.stack(planes, axis=1)
    else:
        values = np.frombuffer(cast(bytes, frame.planes[0]), kind, frame.samples * channels).reshape(-1, channels)
    # [N, C] → [N]; unsigned samples are 8 bit only, with silence at 128.
    mono = values.mean(axis=1, dtype=np.float64)
    if kind.kind == "u":
        mono = (mono - 128) / 128
    elif kind.kind == "i":
        mono /= 2.0 ** (8 * kind.itemsize - 1)
    return mono.astype(np.float32)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Mono samples `[N]` at `rate` → at 16 kHz, the first on the first."""
    if rate == SAMPLE_RATE:
        return samples
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options=_FILTER)
    parts = []
    for begin in range(0, len(samples), rate):  # a second at a time
        frame = AudioFrame.from_ndarray(samples[None, begin : begin + rate], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
    parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)  # a sample or two give no output


def encode_wav(samples: np.ndarray) -> bytes:
    """Float32 `[N]` in -1 .. 1 as a WAV file: 16 kHz mono, 16 bit; values outside are limited.

    The header has 44 bytes and depends on the length alone.

    Raises:
        ValueError: The samples are not one-dimensional.
    """
    if samples.ndim != 1:
        raise ValueError(f"audio has shape {samples.shape}, must be [N]")
    quantised = np.clip(np.rint(samples.astype(np.float64) * _WAV_SCALE), -_WAV_SCALE, _WAV_SCALE - 1).astype("<i2")
    size = quantised.nbytes
    header = _WAV_HEADER.pack(
        b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16, b"data", size
    )
    return header + quantised.tobytes()


def decode_wav(data: bytes) -> np.ndarray:
    """Inverse of `encode_wav`: float32 `[N]`.

    Raises:
        ValueError: Not a WAV file of the project; any other audio file is read by `read_whole_audio`.
    """
    # Only the header that `encode_wav` writes is accepted: no other chunks, no other format.
    if len(data) < _WAV_HEADER.size:
        raise ValueError(f"a WAV file of {len(data)} bytes has no header")
    fields = _WAV_HEADER.unpack_from(data)
    if fields[0] != b"RIFF" or fields[5:8] != (1, 1, SAMPLE_RATE) or fields[10:12] != (16, b"data"):
        raise ValueError(f"not a 16-bit mono WAV file at {SAMPLE_RATE} Hz with a plain header")
    if fields[12] != len(data) - _WAV_HEADER.size:
        raise ValueError(
            f"the WAV header announces {fields[12]} bytes of samples, {len(data) - _WAV_HEADER.size} follow"
        )
    return np.frombuffer(data, "<i2", offset=_WAV_HEADER.size).astype(np.float32) / _WAV_SCALE
