"""Audio as float32 mono at 16 kHz: read from any file, and kept in the project's own WAV files.

Audio is cut by samples on the file's presentation timeline. The order matters: decode, mix the channels (a sum would
clip), resample, then cut. Cutting packets instead would be off by up to a codec frame (23 ms for AAC). Every span is
cut from one grid of 16 kHz samples that starts at the timeline's zero, and how the channels are mixed is decided for
the file as a whole, so a span is equal to that slice of the whole file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import av.container
import numpy as np
from av.audio.stream import AudioStream

from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.limits import check_sound
from talkinghead.media.media_file import MediaFile, name_of
from talkinghead.media.mono import Mix
from talkinghead.media.sound_frames import open_sound, seek, sound_frames
from talkinghead.media.sound_runs import MixKey, Sound, join_runs
from talkinghead.media.sound_survey import read_mixes
from talkinghead.media.timeline import Timeline, read_timeline
from talkinghead.timebase import SAMPLE_RATE, sample_at

SILENCE_PEAK = 1e-3
"""Audio whose peak stays below this (-60 dB of full scale) counts as silent."""

_PREROLL_S = 0.5  # decoded before a span: codecs with overlapping frames need one or two of them, the resampler 1 ms

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
    gap_samples: int = 0
    """Samples of silence that stand for sound that is damaged or missing between the first and the last one."""
    nan_samples: int = 0
    """Samples at the source's rate that were no numbers, and became silence."""
    notes: tuple[str, ...] = ()
    """What is unusual about the sound, a line each."""

    @property
    def padded_fraction(self) -> float:
        """Share of the span that the source has no sound for: before, after, and in gaps."""
        silence = self.leading_silence + self.trailing_silence + self.gap_samples
        return silence / len(self.samples) if len(self.samples) else 0.0


@dataclass(frozen=True)
class WholeAudio:
    """All audio of a file from the start of its timeline."""

    samples: np.ndarray
    """Float32 `[N]`, 16 kHz."""
    gap_samples: int
    """Samples of silence that stand for sound that is damaged or missing in between."""
    nan_samples: int
    """Samples at the source's rate that were no numbers, and became silence."""
    notes: tuple[str, ...]
    """What is unusual about the sound, a line each."""


def read_audio(
    file: MediaFile,
    start_s: float,
    num_samples: int,
    timeline: Timeline | None = None,
    mixes: Mapping[MixKey, Mix] | None = None,
) -> AudioSpan:
    """Audio of the interval that starts at `start_s` on the file's presentation timeline.

    Args:
        file: Any audio or video file.
        start_s: Seconds from the timeline's start (what players show as 0:00; re-based where the file's clock jumps).
        num_samples: Number of samples of the result at 16 kHz; silence fills what the source does not cover.
        timeline: The file's clock; None: it is read.
        mixes: How its channels are mixed (`read_mixes`), for callers that read many spans; None: it is measured.

    Raises:
        ValueError: The file cannot be opened.
    """
    first = sample_at(start_s)
    with open_sound(file) as (_, stream):
        if stream is None:
            return _missing(num_samples)
    timeline = timeline or read_timeline(file)
    mixes = read_mixes(file, timeline) if mixes is None else mixes
    with open_sound(file) as (container, stream):
        assert stream is not None
        # A margin on both sides keeps the edges of the resampler's filter out of the span.
        margin = round(_PREROLL_S * SAMPLE_RATE)
        limits = first - margin, first + num_samples + margin
        wanted = first / SAMPLE_RATE, (first + num_samples) / SAMPLE_RATE
        found = _read(container, stream, timeline, mixes, limits, wanted, name_of(file))
    # Cut: the part of the span that the source covers, with silence around it.
    samples = np.zeros(num_samples, np.float32)
    begin, end = max(first, found.offset), min(first + num_samples, found.offset + len(found.samples))
    if end <= begin:
        return _missing(num_samples)
    samples[begin - first : end - first] = found.samples[begin - found.offset : end - found.offset]
    state = "present" if float(np.abs(samples).max(initial=0.0)) >= SILENCE_PEAK else "silent"
    gaps = _gap_samples(found, begin, end)
    notes = _notes(mixes, gaps, found.nan_samples)
    return AudioSpan(samples, begin - first, first + num_samples - end, state, gaps, found.nan_samples, notes)


def read_whole_audio(file: MediaFile, seconds: float | None = None) -> np.ndarray:
    """All audio of a file as float32 mono `[N]` at 16 kHz; arguments and errors are those of `read_sound`."""
    return read_sound(file, seconds).samples


def read_sound(file: MediaFile, seconds: float | None = None) -> WholeAudio:
    """All audio of a file as float32 mono at 16 kHz, from the start of its timeline, and what is unusual about it.

    Args:
        file: Any audio or video file.
        seconds: Most seconds to read; what comes later is left out. None: everything, up to `SOUND_SECONDS`.

    Raises:
        ValueError: The file cannot be opened, has no audio that decodes, or is longer than `SOUND_SECONDS` while no
            length was named.
    """
    wanted = None if seconds is None else max(1, math.ceil(seconds * SAMPLE_RATE))
    with open_sound(file) as (_, stream):
        if stream is None:
            raise UnreadableMediaError("no_audio", f"{name_of(file)} has no audio stream")
    timeline = read_timeline(file)
    mixes = read_mixes(file, timeline)
    with open_sound(file) as (container, stream):
        assert stream is not None
        # A margin keeps the end of the resampler's filter out of what is wanted.
        last = None if wanted is None else wanted + round(_PREROLL_S * SAMPLE_RATE)
        until = math.inf if wanted is None else wanted / SAMPLE_RATE
        found = _read(container, stream, timeline, mixes, (None, last), (0.0, until), name_of(file))
        codec = stream.codec_context.name
    if not len(found.samples):
        raise UnreadableMediaError("undecodable", f"{name_of(file)}: nothing of its {codec} audio can be decoded")
    # A late start becomes silence; samples before the timeline's zero are dropped.
    samples = found.samples[max(0, -found.offset) :][:wanted]
    if found.offset > 0:
        samples = np.concatenate([np.zeros(found.offset, np.float32), samples])[:wanted]
    gaps = _gap_samples(found, 0, len(samples))
    return WholeAudio(samples, gaps, found.nan_samples, _notes(mixes, gaps, found.nan_samples))


def _missing(num_samples: int) -> AudioSpan:
    return AudioSpan(np.zeros(num_samples, np.float32), num_samples, 0, "missing")


def _gap_samples(sound: Sound, begin: int, end: int) -> int:
    """Samples of gaps between two positions of the grid."""
    return sum(max(0, min(end, last) - max(begin, first)) for first, last in sound.gaps)


def _notes(mixes: Mapping[MixKey, Mix], gaps: int, nan_samples: int) -> tuple[str, ...]:
    notes = list(dict.fromkeys(mix.note for mix in mixes.values() if mix.note))
    if gaps:
        notes.append(f"{gaps / SAMPLE_RATE:.2f} s of sound are damaged or missing: silence in their place")
    if nan_samples:
        notes.append(f"{nan_samples} samples of the sound are no numbers: silence in their place")
    return tuple(notes)


def _read(
    container: av.container.InputContainer,
    stream: AudioStream,
    timeline: Timeline,
    mixes: Mapping[MixKey, Mix],
    limits: tuple[int | None, int | None],
    wanted: tuple[float, float],
    name: str,
) -> Sound:
    """Mono audio around the samples `first .. last` (the limits) of the 16 kHz grid."""
    check_sound(name, stream.rate, stream.channels)
    # Decode at the source's own rate, from a little before the span on. Where the clock jumps, times do not say where
    # in the file they are.
    begin_s, end_s = (None if limit is None else limit / SAMPLE_RATE for limit in limits)
    if begin_s is not None and begin_s - _PREROLL_S > 0 and timeline.is_plain:
        seek(container, stream, begin_s - _PREROLL_S)
    return join_runs(sound_frames(container, stream, timeline, name), mixes, wanted, begin_s, end_s, name)


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
