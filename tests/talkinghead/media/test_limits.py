"""Sound of a few kilobytes that asks for gigabytes: refused in one line, or read only as far as it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.audio import read_audio, read_whole_audio
from talkinghead.media.limits import SOUND_SECONDS
from talkinghead.media.talking_video import write_talking_video
from talkinghead.media.timeline import read_timeline
from tests.support.hostile_media import HOURS_10, packed_silence, sound_with_gap, wav
from tests.support.limited_call import Called, call_limited
from tests.support.media_files import flat, write_audio, write_video

CODE = """
from pathlib import Path
from talkinghead.media.audio import read_audio, read_whole_audio

def call(path, seconds):
    if seconds == "span":
        return len(read_audio(Path(path), 3600.0, 16000).samples)
    return len(read_whole_audio(Path(path), float(seconds) if seconds != "all" else None))
"""


def called(path: Path, seconds: object) -> Called:
    found = call_limited(CODE, path, seconds)
    assert found.memory < 80e6, found
    return found


@pytest.mark.parametrize("suffix", ["mka", "mp4"])
def test_a_gap_of_hours_is_refused_and_not_filled(tmp_path: Path, suffix: str) -> None:
    file = sound_with_gap(tmp_path / f"gap.{suffix}")
    assert file.stat().st_size < 4000
    assert f"the sound of {file} is longer than 7200 s" in called(file, "all").said
    assert called(file, 60).said == str(60 * 16000)
    assert called(file, "span").said == "16000"


def test_sound_that_begins_hours_after_the_images_begins_with_them(tmp_path: Path) -> None:
    """Nobody recorded that: a clock is damaged, and there are no hours of silence to be made."""
    images = [flat(64, 48, 90)] * 3
    sound = np.full((1, 4096), 0.25)
    file = write_video(tmp_path / "late.mp4", images, audio=sound, audio_rate=48_000, audio_start=HOURS_10 * 48_000)
    for seconds in ("all", 2):
        assert 4096 / 3 <= int(called(file, seconds).said) <= 4096 / 3 + 1024
    assert called(file, "span").said == "16000"
    (note,) = read_timeline(file).notes()
    assert "moved to begin with it" in note and read_audio(file, 0.0, 640).state == "present"


def test_sound_that_begins_hours_into_long_images_is_silence_within_limits(tmp_path: Path) -> None:
    """The images go on until then, so the silence is real: it is read as far as it is asked for."""
    images = (flat(64, 48, 90) for _ in range(3 * 3600 + 3))
    sound = np.full((1, 4096), 0.25)
    file = write_video(
        tmp_path / "long.mp4", images, rate=1, audio=sound, audio_rate=48_000, audio_start=3 * 3600 * 48_000
    )
    assert read_timeline(file).is_plain
    assert "is longer than 7200 s" in called(file, "all").said
    assert called(file, 2).said == "32000"


def test_packed_silence_is_counted_while_it_is_decoded(tmp_path: Path) -> None:
    file = packed_silence(tmp_path / "silence.flac", HOURS_10)
    assert file.stat().st_size < 100_000
    found = call_limited(CODE, file, "all")
    assert "is longer than 7200 s" in found.said and found.memory < 600e6
    assert called(file, 5).said == "80000"


@pytest.mark.parametrize(("rate", "channels"), [(1, 1), (999, 1), (192_001, 1), (2**31 - 1, 1), (16_000, 65)])
def test_rates_and_channels_that_nothing_has_are_refused(tmp_path: Path, rate: int, channels: int) -> None:
    file = wav(tmp_path / "a.wav", rate, channels)
    with pytest.raises(ValueError, match=rf"{rate} Hz with {channels} channels"):
        read_whole_audio(file)
    with pytest.raises(ValueError, match=rf"{rate} Hz with {channels} channels"):
        read_audio(file, 0.0, 640)


def test_an_hour_of_speech_takes_the_memory_of_its_samples(tmp_path: Path) -> None:
    file = tmp_path / "hour.flac"
    packed_silence(file, 3600, rate=48_000)
    found = call_limited(CODE, file, "all")
    # 230 MB, and what the buffer holds in reserve; half a second more than an hour, by FLAC's frames.
    assert 3600 * 16000 <= int(found.said) < 3605 * 16000 and found.memory < 300e6
    assert SOUND_SECONDS >= 2 * 3600


@pytest.mark.parametrize("seconds", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_what_is_named_equals_the_begin_of_the_whole(tmp_path: Path, rate: int, seconds: float) -> None:
    tone = np.sin(np.arange(2 * rate) * 0.05)[None] * 0.5
    file = write_audio(tmp_path / "a.wav", tone, rate, "pcm_s16le", "s16")
    whole = read_whole_audio(file)
    found = read_whole_audio(file, seconds)
    assert len(found) == min(len(whole), round(seconds * 16000)) and np.array_equal(found, whole[: len(found)])


def test_a_gap_in_the_sound_of_a_video_that_is_written(tmp_path: Path) -> None:
    """The sound is read again, as it is in the file: a gap is filled only as far as the video goes."""
    gap = sound_with_gap(tmp_path / "gap.mka")
    code = """
from pathlib import Path
import numpy as np
from talkinghead.media.talking_video import write_talking_video
from talkinghead.media.timeline import read_timeline

def call(speech, out):
    images = (np.zeros((64, 64, 3), np.uint8) for _ in range(100))
    return write_talking_video(Path(out), images, width=64, height=64, fps=25, speech=Path(speech))
"""
    found = call_limited(code, gap, tmp_path / "out.mp4")
    assert found.said == "100" and found.memory < 100e6


def test_a_gap_of_seconds_is_silence_of_that_length(tmp_path: Path) -> None:
    gap = sound_with_gap(tmp_path / "gap.mka", 3)
    write_talking_video(tmp_path / "out.mp4", [flat(64, 64, 0)] * 100, width=64, height=64, fps=25, speech=gap)
    for file in (gap, tmp_path / "out.mp4"):
        loud = np.flatnonzero(np.abs(read_whole_audio(file)) > 0.05)
        assert loud.min() < 0.1 * 16000 and abs(loud.max() - 3.04 * 16000) < 0.1 * 16000
        assert not np.any((loud > 0.2 * 16000) & (loud < 2.9 * 16000))
