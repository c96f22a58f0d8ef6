"""Speech of every kind: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infer.speech import describe_speech, read_speech
from talkinghead.media.audio import read_audio
from tests.support.sound_files import write_pcm


def test_channels_and_rates(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(np.arange(96000) * 2 * np.pi * 300 / 96000)
    eight = read_speech(write_pcm(tmp_path / "a.wav", np.repeat(tone[:, None], 8, axis=1), 96000))
    assert eight.duration_s == pytest.approx(1.0) and eight.peak == pytest.approx(0.5, abs=0.01) and not eight.silent


def test_one_sample_and_silence(tmp_path: Path, media: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_speech(write_pcm(tmp_path / "a.wav", np.full((1, 1), 0.5), 16000)).samples) == 1
    assert not caplog.text
    silent = read_speech(media / "audio" / "torchcodec_reproduce_seek_bug.wav")
    assert silent.silent and silent.duration_s == 1 and "is silent" in caplog.text
    assert read_speech(media / "hard" / "LivePortrait_d18.mp4").silent, "a video whose sound is silence"


def test_silence_is_that_of_the_part_that_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    late = np.concatenate([np.zeros(8000), np.full(8000, 0.5)])[:, None]
    path = write_pcm(tmp_path / "a.wav", late, 16000)
    assert not read_speech(path).silent and not caplog.text
    begun = read_speech(path, seconds=0.25)
    assert len(begun.samples) == 4000 and begun.silent and "is silent" in caplog.text
    assert len(read_speech(path, seconds=1e9).samples) == 16000


def test_refused(tmp_path: Path, media: Path) -> None:
    write_pcm(tmp_path / "none.wav", np.zeros((0, 1)), 16000)
    write_pcm(tmp_path / "short.wav", np.zeros((1, 2)), 44100)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    whole = (media / "audio" / "dreamtalk_acknowledgement_english.m4a").read_bytes()
    (tmp_path / "cut.m4a").write_bytes(whole[: len(whole) // 2])
    for path in [
        *(tmp_path / name for name in ("none.wav", "short.wav", "empty.wav", "text.wav", "gone.wav", "cut.m4a")),
        tmp_path,
        media / "video" / "EDTalk_mouth_source.mp4",
        media / "image" / "AniPortrait_Aragaki.png",
    ]:
        with pytest.raises(ValueError) as caught:
            read_speech(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_values_that_are_no_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = b"RIFF" + (36 + 64).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16000).to_bytes(4, "little")
    header += (64000).to_bytes(4, "little") + (4).to_bytes(2, "little") + (32).to_bytes(2, "little")
    values = np.array([0.1, np.nan, np.inf, 0.2] * 4, "<f4")
    (tmp_path / "a.wav").write_bytes(header + b"data" + values.nbytes.to_bytes(4, "little") + values.tobytes())
    speech = read_speech(tmp_path / "a.wav")
    assert np.array_equal(speech.samples, np.array([0.1, 0, 0, 0.2] * 4, np.float32)) and not speech.silent
    assert "8 samples of the sound are no numbers" in caplog.text and "a.wav" in caplog.text


@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_same_sound_as_in_ingest(tmp_path: Path, rate: int, caplog: pytest.LogCaptureFixture) -> None:
    """Channels that cancel: the models hear what they were trained on, and the user is told."""
    tone = 0.5 * np.sin(np.arange(2 * rate) * 2 * np.pi * 300 / rate)
    path = write_pcm(tmp_path / "a.wav", np.stack([tone, -0.7 * tone], axis=1), rate)
    speech = read_speech(path)
    assert np.array_equal(speech.samples, read_audio(path, 0.0, len(speech.samples)).samples)
    assert speech.peak == pytest.approx(0.5, abs=0.01)
    assert speech.notes and all(note in caplog.text for note in speech.notes)
    assert describe_speech(path, speech)["notes"] == list(speech.notes)


def test_plain_speech_has_no_notes(tmp_path: Path) -> None:
    path = write_pcm(tmp_path / "a.wav", np.full((1600, 2), 0.5), 16000)
    assert read_speech(path).notes == () and "notes" not in describe_speech(path, read_speech(path))
