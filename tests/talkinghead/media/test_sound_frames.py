"""Damaged sound: silence in its place, counted; what is before and after it is where it was."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.audio import AudioSpan, read_audio, read_sound, read_whole_audio
from tests.support.media_files import write_audio
from tests.support.sound_files import click_times, repack, ticking, voice, with_bytes

RATE = 48000
CASES = [
    ("aac", "fltp", "m4a"),
    ("aac", "fltp", "ts"),
    ("aac", "fltp", "mkv"),
    ("libopus", "flt", "mkv"),
    ("libopus", "flt", "ogg"),
    ("libmp3lame", "s16p", "mp4"),
    ("libmp3lame", "s16p", "mkv"),
    ("flac", "s16", "flac"),
    ("flac", "s16", "mkv"),
    ("pcm_s16le", "s16", "mkv"),
]
"""Codec, its sample format, container."""
ROUNDED_S = 0.0011
"""Matroska stores times in milliseconds."""


def recording(folder: Path, codec: str, sample_format: str, suffix: str) -> tuple[Path, list[float]]:
    """Four seconds of voice with clicks in the first and the last second; the file, and where its clicks are."""
    sound = 0.1 * voice(4.0, RATE) + ticking([0.3, 0.7, 2.9, 3.3, 3.7], 4.0, RATE)
    file = write_audio(folder / f"whole.{suffix}", np.stack([sound, sound]), RATE, codec, sample_format)
    return file, click_times(read_whole_audio(file))


def lossy(
    source: Path, target: Path, count: int, harm: Callable[[av.Packet], av.Packet | None]
) -> tuple[Path, float, float]:
    """Harm `count` packets from about 1.4 s on; the file, and the begin and end of what they hold in seconds."""
    with av.open(str(source)) as container:
        rows = [(p.pts, p.time_base) for p in container.demux(container.streams.audio[0]) if p.pts is not None]
    tick = rows[0][1]
    assert tick is not None
    times = [float(pts * tick) for pts, _ in rows]
    first = next(number for number, time in enumerate(times) if time - times[0] >= 1.4)

    def change(number: int, packet: av.Packet) -> av.Packet | None:
        return harm(packet) if first <= number < first + count else packet

    return repack(source, target, change), times[first], times[first + count]


def random_bytes(packet: av.Packet) -> av.Packet:
    return with_bytes(packet, np.random.default_rng(packet.pts or 0).bytes(packet.size))


def zeros(packet: av.Packet) -> av.Packet:
    return with_bytes(packet, bytes(packet.size))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("codec", "sample_format", "suffix"), CASES)
def test_lost_packets(tmp_path: Path, codec: str, sample_format: str, suffix: str, count: int) -> None:
    whole, clicks = recording(tmp_path, codec, sample_format, suffix)
    file, begin_s, end_s = lossy(whole, tmp_path / f"lost.{suffix}", count, lambda packet: None)
    sound = read_sound(file)
    lost = (end_s - begin_s) * 16000
    assert sound.gap_samples == pytest.approx(lost, abs=ROUNDED_S * 16000), "counted, also below 40 ms"
    if codec == "aac":  # to the sample, also where times are stored in milliseconds
        assert sound.gap_samples == pytest.approx(count * 1024 / 3, abs=1.5)
    assert np.abs(np.subtract(click_times(sound.samples), clicks)).max() < ROUNDED_S, "nothing moved"
    # The gap is silent, but for the edges that the resampler and the codec's overlapping frames have.
    if suffix != "ogg":  # which says the time of a page only
        inside = sound.samples[round(begin_s * 16000) + 100 : round(end_s * 16000) - 100]
        assert not np.abs(inside).max(initial=0) > 1e-3
    assert len(sound.samples) == pytest.approx(len(read_whole_audio(whole)), abs=ROUNDED_S * 16000)
    assert any("silence in their place" in note for note in sound.notes)


@pytest.mark.parametrize("harm", [random_bytes, zeros])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("codec", "sample_format", "suffix"), [case for case in CASES if not case[0].startswith(("pcm", "libopus"))]
)
def test_broken_packets(
    tmp_path: Path,
    codec: str,
    sample_format: str,
    suffix: str,
    count: int,
    harm: Callable[[av.Packet], av.Packet],
) -> None:
    whole, clicks = recording(tmp_path, codec, sample_format, suffix)
    file, begin_s, end_s = lossy(whole, tmp_path / f"broken.{suffix}", count, harm)
    sound = read_sound(file)
    # Some frames after the broken ones may be lost with them: MP3 takes bits from the frames before, and a transport
    # stream has several AAC frames in a packet of its own.
    assert sound.gap_samples >= (end_s - begin_s - ROUNDED_S) * 16000
    assert sound.gap_samples <= (end_s - begin_s + 0.2) * 16000
    assert np.abs(np.subtract(click_times(sound.samples), clicks)).max() < ROUNDED_S
    inside = sound.samples[round(begin_s * 16000) + 100 : round(end_s * 16000) - 100]
    assert not np.abs(inside).max(initial=0) > 1e-3, "no noise in the gap"


@pytest.mark.parametrize("harm", [random_bytes, zeros])
def test_broken_packets_of_opus_move_nothing(tmp_path: Path, harm: Callable[[av.Packet], av.Packet]) -> None:
    """Opus makes sound of any bytes, and says nothing."""
    whole, clicks = recording(tmp_path, "libopus", "flt", "mkv")
    file, _, _ = lossy(whole, tmp_path / "broken.mkv", 4, harm)
    found = [time for time in click_times(read_whole_audio(file)) if not 1.3 < time < 2.6]
    assert np.abs(np.subtract(found, clicks)).max() < ROUNDED_S


@pytest.mark.parametrize("suffix", ["ogg", "flac"])
def test_destroyed_bytes_of_a_file(tmp_path: Path, suffix: str) -> None:
    """Pages of Ogg and frames of FLAC have check sums: what is destroyed is silence, the rest is in its place."""
    codec, sample_format = ("libopus", "flt") if suffix == "ogg" else ("flac", "s16")
    whole, clicks = recording(tmp_path, codec, sample_format, suffix)
    if suffix == "ogg":  # in pages of 0.2 s
        whole = repack(whole, tmp_path / "paged.ogg", lambda _, packet: packet, {"page_duration": "200000"})
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 500] = np.random.default_rng(0).bytes(500)
    (tmp_path / f"broken.{suffix}").write_bytes(data)
    sound = read_sound(tmp_path / f"broken.{suffix}")
    assert np.abs(np.subtract(click_times(sound.samples), clicks)).max() < ROUNDED_S
    assert 500 < sound.gap_samples < 0.5 * 16000


@pytest.mark.parametrize("place", [0.4, 0.6, 0.8, 0.9])
def test_a_flipped_byte_of_flac_is_found(tmp_path: Path, place: float) -> None:
    """It decodes into noise; only the check sum of the frame shows it."""
    whole, _ = recording(tmp_path, "flac", "s16", "mkv")

    def flipped(packet: av.Packet) -> av.Packet:
        data = bytearray(bytes(packet))
        data[round(place * len(data))] ^= 0x55
        return with_bytes(packet, bytes(data))

    file, begin_s, end_s = lossy(whole, tmp_path / "flipped.mkv", 1, flipped)
    sound = read_sound(file)
    assert sound.gap_samples == pytest.approx((end_s - begin_s) * 16000, abs=ROUNDED_S * 16000)
    assert not sound.samples[round(begin_s * 16000) + 50 : round(end_s * 16000) - 50].any()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_lost_pieces_of_a_transport_stream(tmp_path: Path, count: int) -> None:
    """Its packets of 188 bytes end up in the middle of codec frames; FFmpeg flags what it puts together of the rest."""
    whole, clicks = recording(tmp_path, "aac", "fltp", "ts")
    data = whole.read_bytes()
    pieces = [data[begin : begin + 188] for begin in range(0, len(data), 188)]
    sound = [number for number, piece in enumerate(pieces) if (piece[1] & 0x1F) << 8 | piece[2] == 0x100]
    lost = set(sound[len(sound) * 2 // 5 :][:count])
    (tmp_path / "lost.ts").write_bytes(b"".join(piece for n, piece in enumerate(pieces) if n not in lost))
    found = read_sound(tmp_path / "lost.ts")
    assert np.abs(np.subtract(click_times(found.samples), clicks)).max() < 1e-4
    assert 300 < found.gap_samples < 8000
    # Where there is sound, it is that of the whole file.
    expected = read_whole_audio(whole)
    off = np.flatnonzero(np.abs(found.samples[: len(expected)] - expected[: len(found.samples)]) > 0.02)
    assert len(off) < found.gap_samples + 2 * 1024 / 3


def test_spans_around_damage_equal_the_whole(tmp_path: Path) -> None:
    whole, _ = recording(tmp_path, "flac", "s16", "mkv")
    file, begin_s, _ = lossy(whole, tmp_path / "lost.mkv", 1, lambda packet: None)
    sound = read_whole_audio(file)
    for start in (0.0, 1.0, begin_s, 1.5, 2.5):
        span = read_audio(file, start, 16000)
        first = round(start * 16000)
        assert np.abs(span.samples - sound[first : first + 16000]).max() < 2e-4
    assert read_audio(file, 1.0, 16000).gap_samples > 1000
    assert read_audio(file, 2.6, 16000).gap_samples == 0


def test_jitter_of_time_stamps_is_no_gap(tmp_path: Path) -> None:
    """Stamps that are off by half a frame now and then mean nothing; samples follow each other."""
    whole, _ = recording(tmp_path, "pcm_s16le", "s16", "mkv")
    rng = np.random.default_rng(0)

    def jitter(number: int, packet: av.Packet) -> av.Packet:
        assert packet.pts is not None
        if number % 7 == 3:
            packet.pts = packet.dts = packet.pts + int(rng.integers(11, 14))
        return packet

    sound = read_sound(repack(whole, tmp_path / "jitter.mkv", jitter))
    assert np.array_equal(sound.samples, read_whole_audio(whole)) and sound.gap_samples == 0 and not sound.notes


def test_a_packet_that_comes_twice_is_read_once(tmp_path: Path) -> None:
    whole, clicks = recording(tmp_path, "pcm_s16le", "s16", "mkv")
    file, _, _ = lossy(whole, tmp_path / "lost.mkv", 0, lambda packet: packet)
    with av.open(str(file)) as one, av.open(str(tmp_path / "twice.mkv"), "w") as two:
        copy = two.add_stream_from_template(one.streams.audio[0])
        for number, packet in enumerate(one.demux(one.streams.audio[0])):
            if packet.dts is None:
                continue
            data = bytes(packet)
            for _ in range(2 if number == 70 else 1):
                again = with_bytes(packet, data)
                again.stream = copy
                two.mux(again)
    assert np.abs(np.subtract(click_times(read_whole_audio(tmp_path / "twice.mkv")), clicks)).max() < ROUNDED_S


def float_wav(values: np.ndarray, rate: int = 16000) -> bytes:
    """32-bit float WAV of `[N, C]`, whatever the values."""
    channels = values.shape[1]
    data = values.astype("<f4").tobytes()
    head = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += (3).to_bytes(2, "little") + channels.to_bytes(2, "little") + rate.to_bytes(4, "little")
    head += (rate * 4 * channels).to_bytes(4, "little") + (4 * channels).to_bytes(2, "little")
    return head + (32).to_bytes(2, "little") + b"data" + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers_become_silence(wrong: float) -> None:
    speech = voice(2.0, 16000)
    broken = np.stack([speech, speech], axis=1)
    places = np.arange(1000, 2000, 10)
    broken[places] = wrong
    expected = speech.astype(np.float32).copy()
    expected[places] = 0
    file = io.BytesIO(float_wav(broken))
    sound = read_sound(file)
    assert np.array_equal(sound.samples, expected)
    assert sound.nan_samples == 100 and any("100 samples" in note for note in sound.notes)
    # By span, and a span with a few of them is not silent.
    spans: list[AudioSpan] = [read_audio(file, start, 16000) for start in (0.0, 0.1, 1.0)]
    assert [span.nan_samples for span in spans] == [100, 40, 0]
    assert all(span.state == "present" for span in spans)
    assert np.array_equal(spans[1].samples, expected[1600:17600])


def test_a_channel_of_no_numbers_counts_as_silent() -> None:
    speech = voice(2.0, 16000)
    sound = read_sound(io.BytesIO(float_wav(np.stack([np.full_like(speech, np.nan), speech], axis=1))))
    assert np.array_equal(sound.samples, speech.astype(np.float32)) and sound.nan_samples == 32000
    nothing = io.BytesIO(float_wav(np.full((16000, 1), np.nan)))
    assert read_audio(nothing, 0.0, 16000).state == "silent" and not read_whole_audio(nothing).any()
