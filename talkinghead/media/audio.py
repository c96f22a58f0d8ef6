"""Audio as float32 mono at 16 kHz: read from any file, and kept in the project's own WAV files.

Audio is cut by samples on the file's presentation timeline. The order matters: decode, mean of the channels (a sum
would clip), resample, then cut. Cutting packets instead would be off by up to a codec frame (23 ms for AAC). Every span
is cut from one grid of 16 kHz samples that starts at the timeline's zero, so a span is equal to that slice of the whole
file.
"""

from __future__ import annotations

import itertools
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
from talkinghead.media.limits import SOUND_SECONDS, check_sound
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


def read_whole_audio(file: MediaFile, seconds: float | None = None) -> np.ndarray:
    """All audio of a file as float32 mono `[N]` at 16 kHz, from the start of its timeline.

    Args:
        file: Any audio or video file.
        seconds: Most seconds to read; what comes later is left out. None: everything, up to `SOUND_SECONDS`.

    Raises:
        ValueError: The file cannot be opened, has no audio that decodes, or is longer than `SOUND_SECONDS` while no
            length was named.
    """
    wanted = None if seconds is None else max(1, math.ceil(seconds * SAMPLE_RATE))
    with open_media(file, "audio") as container:
        stream = audio_stream(container)
        if stream is None:
            raise UnreadableMediaError("no_audio", f"{name_of(file)} has no audio stream")
        # A margin keeps the end of the resampler's filter out of what is wanted.
        last = None if wanted is None else wanted + round(_PREROLL_S * SAMPLE_RATE)
        found, offset = _read(container, stream, None, last, name_of(file))
    if not len(found):
        raise UnreadableMediaError(
            "undecodable", f"{name_of(file)}: nothing of its {stream.codec_context.name} audio can be decoded"
        )
    # A late start becomes silence; samples before the timeline's zero are dropped.
    found = found[max(0, -offset) :][:wanted]
    return found if offset <= 0 else np.concatenate([np.zeros(offset, np.float32), found])[:wanted]


def _missing(num_samples: int) -> AudioSpan:
    return AudioSpan(np.zeros(num_samples, np.float32), num_samples, 0, "missing")


def _read(
    container: av.container.InputContainer, stream: AudioStream, first: int | None, last: int | None, name: str
) -> tuple[np.ndarray, int]:
    """Mono audio around the samples `first .. last` of the 16 kHz grid, and the grid position of its first sample."""
    check_sound(name, stream.rate, stream.channels)
    # Decode at the source's own rate, from a little before the span on.
    begin_s = None if first is None else first / SAMPLE_RATE
    if begin_s is not None and begin_s - _PREROLL_S > 0:
        _seek(container, stream, begin_s - _PREROLL_S)
    end_s = None if last is None else last / SAMPLE_RATE
    native = _Native(_frames(container, stream), start_of(container), begin_s, end_s, name)

    # Resample while it is decoded, so that the whole is in memory at 16 kHz only.
    found = bytearray()  # grows in place, where an array would be copied
    for part in native.resampled():
        found += memoryview(np.ascontiguousarray(part)).cast("B")  # pyright: ignore[reportArgumentType]
    return native.cut(np.frombuffer(found, np.float32))


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


class _Native:
    """Mono sound at the source's own rate, joined from decoded frames piece by piece.

    Gaps in the time stamps become silence, overlaps are cut, jitter is ignored.

    Args:
        frames: Decoded frames in the order of the file.
        origin: Start of the file's timeline in seconds.
        begin_s: What ends before is left out, seconds on the timeline; None: nothing is.
        end_s: What begins after is left out; None: nothing is, and `SOUND_SECONDS` are the most.
        name: Name of the file, for messages.
    """

    def __init__(
        self, frames: Iterator[AudioFrame], origin: float, begin_s: float | None, end_s: float | None, name: str
    ) -> None:
        self._frames = frames
        self._origin = origin
        self._begin_s = begin_s
        self._end_s = end_s
        self._name = name
        self._rate = 0  # of all frames, known with the first one
        self._position = 0  # of the first sample on the timeline, in samples
        self._count = 0  # samples so far

    def resampled(self) -> Iterator[np.ndarray]:
        """The sound at 16 kHz, in arrays float32 `[n]`; `cut` takes off what does not belong to it."""
        parts = self._joined()
        first = next(parts, None)
        if first is None:
            return
        parts = itertools.chain([first], parts)
        if self._rate == SAMPLE_RATE:
            yield from parts
        else:
            # The resampler puts its first output on its first input, so the input must start where both grids meet.
            lead = np.zeros(self._position % self._block, np.float32)
            yield from _resample(itertools.chain([lead], parts), self._rate)

    def cut(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """The sound out of all that `resampled` gave, float32 `[N]`, and the grid position of its first sample."""
        if not self._count:
            return np.zeros(0, np.float32), 0
        # Leave out what the start before it added, and what the filter's end did.
        lead = self._position % self._block
        skip = -(-lead * SAMPLE_RATE // self._rate)
        total = (lead + self._count) * SAMPLE_RATE // self._rate
        offset = (self._position - lead) // self._block * (SAMPLE_RATE // math.gcd(self._rate, SAMPLE_RATE))
        return samples[skip:total], offset + skip

    @property
    def _block(self) -> int:
        """Samples from one to the next at which the source's grid and ours meet: 441 at 44.1 kHz, 3 at 48 kHz."""
        return self._rate // math.gcd(self._rate, SAMPLE_RATE)

    def _joined(self) -> Iterator[np.ndarray]:
        """Mono samples `[n]` at the source's rate, without gaps."""
        for frame in self._frames:
            # One rate per file: the frames share one grid of samples.
            if not self._count:
                check_sound(self._name, frame.sample_rate, frame.layout.nb_channels)
                self._rate = frame.sample_rate
            elif frame.sample_rate != self._rate:
                raise ValueError(
                    f"{self._name}: its audio changes from {self._rate} to {frame.sample_rate} Hz in the middle"
                )
            # Where the frame begins: by its time stamp, else right after the one before.
            begin = expected = self._position + self._count
            if frame.pts is not None and frame.time_base:
                begin = round((float(frame.pts * frame.time_base) - self._origin) * self._rate)
            if self._end_s is not None and begin >= self._end_s * self._rate:
                if self._begin_s is None:  # what is read from 0 on has silence until there
                    self._position = self._position if self._count else 0
                    yield from self._silence(math.ceil(self._end_s * self._rate) - self._position - self._count)
                break
            mono = to_mono(frame)
            # The first one that is wanted; the codec needed those before the span.
            if not self._count:
                if self._begin_s is not None and begin + len(mono) <= self._begin_s * self._rate:
                    continue
                self._position = expected = begin
            # Join it to the samples so far.
            if begin - expected > _JITTER_S * self._rate:
                self._check_length(begin)  # a gap of hours is not filled first
                yield from self._silence(begin - expected)
            elif expected - begin > _JITTER_S * self._rate:
                mono = mono[expected - begin :]
            yield self._counted(mono)

    def _silence(self, count: int) -> Iterator[np.ndarray]:
        """Silence of any length, a second at a time."""
        for begin in range(0, count, self._rate):
            yield self._counted(np.zeros(min(self._rate, count - begin), np.float32))

    def _counted(self, mono: np.ndarray) -> np.ndarray:
        self._count += len(mono)
        self._check_length(self._position + self._count)
        return mono

    def _check_length(self, end: int) -> None:
        """Raise `ValueError` where the sound up to a position is longer than what is read whole."""
        if self._end_s is None and max(end, end - self._position) > SOUND_SECONDS * self._rate:
            raise UnreadableMediaError(
                "too_long",
                f"the sound of {self._name} is longer than {SOUND_SECONDS:.0f} s, the most that is read whole, or its"
                " time stamps leave a gap of hours",
            )


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


def _resample(parts: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Mono samples `[n]` at `rate` → at 16 kHz, the first on the first."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options=_FILTER)
    for number, second in enumerate(_blocks(parts, rate)):
        frame = AudioFrame.from_ndarray(second[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, number * rate, Fraction(1, rate)
        for out in resampler.resample(frame):
            yield out.to_ndarray()[0]
    for out in resampler.resample(None):
        yield out.to_ndarray()[0]


def _blocks(parts: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Samples `[n]` in arrays of one size; the last one may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            whole = np.concatenate(held)
            for begin in range(0, count - size + 1, size):
                yield whole[begin : begin + size]
            held = [whole[count // size * size :]]
            count = len(held[0])
    if count:
        yield np.concatenate(held)


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
