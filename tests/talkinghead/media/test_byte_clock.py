"""MP3 files without a container: what is destroyed in them is silence, and moves nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.audio import read_audio, read_sound, read_whole_audio
from talkinghead.media.byte_clock import frame_bytes
from tests.support.media_files import write_audio
from tests.support.sound_files import click_times, ticking, voice


@pytest.fixture(scope="module", params=[44100, 24000, 8000])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rate = int(request.param)
    sound = 0.1 * voice(4.0, rate) + ticking([0.3, 0.7, 3.2, 3.5], 4.0, rate)
    return write_audio(tmp_path_factory.mktemp("mp3") / "a.mp3", sound[None], rate, "libmp3lame", "s16p")


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("noise", [False, True])
def test_destroyed_bytes_move_nothing(tmp_path: Path, recording: Path, share: float, noise: bool) -> None:
    data = bytearray(recording.read_bytes())
    begin, size = len(data) // 2, round(share * len(data))
    data[begin : begin + size] = np.random.default_rng(size).bytes(size) if noise else bytes(size)
    (tmp_path / "b.mp3").write_bytes(data)
    clicks = [time for time in click_times(read_whole_audio(recording)) if not 1.5 < time < 3]
    sound = read_sound(tmp_path / "b.mp3")
    found = [time for time in click_times(sound.samples) if not 1.5 < time < 3]
    assert len(found) == 4 and np.abs(np.subtract(found, clicks)).max() < 1e-3
    assert sound.gap_samples or share == 0.01
    late = read_audio(tmp_path / "b.mp3", 3.0, 8000)
    assert np.abs(late.samples - sound.samples[48000:56000]).max() < 2e-4


def test_a_tag_between_frames_takes_no_time(tmp_path: Path, recording: Path) -> None:
    """Files joined by their bytes, the second with its ID3 tag."""
    data = recording.read_bytes()
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 0x40, 0]) + bytes(8192)
    (tmp_path / "plain.mp3").write_bytes(data + data)
    (tmp_path / "tagged.mp3").write_bytes(data + tag + data)
    one, two = (read_whole_audio(tmp_path / f"{name}.mp3") for name in ("plain", "tagged"))
    assert len(two) == pytest.approx(len(one), abs=2500)


def test_lengths_of_frames() -> None:
    assert frame_bytes(bytes([0xFF, 0xFB, 0x90, 0x00])) == 417  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz
    assert frame_bytes(bytes([0xFF, 0xFB, 0x92, 0x00])) == 418
    assert frame_bytes(bytes([0xFF, 0xF3, 0x84, 0x00])) == 192  # MPEG-2, 64 kbit/s, 24 kHz
    assert frame_bytes(bytes([0xFF, 0xE3, 0x48, 0x00])) == 288  # MPEG-2.5, 32 kbit/s, 8 kHz
    for wrong in (b"", b"\xff\xfb", b"\0\0\0\0", b"\xff\xfb\xf0\0", b"\xff\xfb\x9c\0", b"\xff\xfd\x90\0"):
        assert frame_bytes(wrong) is None
