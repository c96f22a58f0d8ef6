"""A file's sound as a whole: one decision for all its spans, and where it has any."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.audio import read_audio, read_sound, read_whole_audio
from talkinghead.media.sound_survey import SURVEY_S, read_mixes, sound_intervals
from talkinghead.media.timeline import read_timeline
from tests.support.media_files import flat, write_audio, write_video
from tests.support.sound_files import repack, voice, write_pcm, write_runs


def test_inverted_channels_are_the_speech_in_every_span(tmp_path: Path) -> None:
    speech = np.concatenate([np.zeros(16000), voice(3.0, 16000), np.zeros(16000)])
    file = write_pcm(tmp_path / "a.wav", np.stack([speech, -speech], axis=1), 16000)
    whole = read_sound(file)
    assert np.abs(whole.samples - speech).max() < 1e-4 and "cancel" in whole.notes[0]
    for start in (0.0, 0.5, 1.7, 4.5):
        span = read_audio(file, start, 8000)
        first = round(start * 16000)
        assert np.array_equal(span.samples, whole.samples[first : first + 8000]), "also where a span is silent"
        assert span.notes == whole.notes
    assert read_audio(file, 1.5, 8000).state == "present"


def test_long_files_are_judged_by_parts_from_all_over(tmp_path: Path) -> None:
    """Longer than what is decoded: every second of it is mixed alike, and only some of it is looked at."""
    speech = voice(10.0, 8000)
    quiet = np.zeros(round(SURVEY_S) * 8000)
    long = np.concatenate([quiet, np.tile(speech, 30)])
    file = write_pcm(tmp_path / "a.wav", np.stack([long, -long], axis=1), 8000)
    (mix,) = read_mixes(file, read_timeline(file)).values()
    assert sorted(mix.weights) == [0, 1] and mix.note is not None
    late = read_audio(file, SURVEY_S + 200, 16000)
    assert late.state == "present"


def test_memory_does_not_grow_with_the_channels_of_a_long_file(tmp_path: Path) -> None:
    long = np.tile(voice(10.0, 16000), 20)
    file = write_pcm(tmp_path / "a.wav", np.stack([long] * 6, axis=1) * 0.3, 16000)
    timeline = read_timeline(file)
    read_audio(file, 100.0, 16000, timeline)
    tracemalloc.start()
    read_audio(file, 100.0, 16000, timeline)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, "all of it would be 150 MB"


def test_each_layout_of_a_file_has_its_own_mix(tmp_path: Path) -> None:
    speech = voice(2.0, 48000)
    file = write_runs(tmp_path / "a.ts", [(np.stack([speech, -speech]), 48000), (np.stack([speech, speech]), 44100)])
    mixes = read_mixes(file, read_timeline(file))
    assert [mix.note is None for mix in mixes.values()] == [False, True]


def test_mixes_and_timeline_can_be_given(tmp_path: Path) -> None:
    speech = voice(2.0, 16000)
    file = write_pcm(tmp_path / "a.wav", np.stack([speech, -speech], axis=1), 16000)
    timeline = read_timeline(file)
    mixes = read_mixes(file, timeline)
    given = read_audio(file, 0.2, 16000, timeline, mixes)
    assert np.array_equal(given.samples, read_audio(file, 0.2, 16000).samples)
    assert not read_audio(file, 0.2, 16000, timeline, {}).samples.any(), "without them: the mean"


def test_a_file_that_changed_is_surveyed_anew(tmp_path: Path) -> None:
    speech = voice(1.0, 16000)
    read_audio(write_pcm(tmp_path / "a.wav", np.stack([speech, speech], axis=1), 16000), 0.0, 16000)
    write_pcm(tmp_path / "b.wav", np.stack([speech, -speech], axis=1), 16000).replace(tmp_path / "a.wav")
    assert read_audio(tmp_path / "a.wav", 0.0, 16000).notes


def test_mono_files_are_not_surveyed(tmp_path: Path) -> None:
    file = write_pcm(tmp_path / "a.wav", voice(1.0, 16000)[:, None], 16000)
    assert read_mixes(file, read_timeline(file)) == {}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_that_ends_early(tmp_path: Path, suffix: str) -> None:
    images = [flat(64, 64, 80)] * 100
    sound = np.stack([voice(1.2, 48000)] * 2)
    file = write_video(tmp_path / f"a.{suffix}", images, audio=sound, audio_rate=48000)
    ((begin, end),) = sound_intervals(file, read_timeline(file))
    assert begin == pytest.approx(0, abs=0.03) and end == pytest.approx(1.2, abs=0.05)
    span = read_audio(file, 0.0, 64000)
    assert span.trailing_silence == pytest.approx(64000 - 1.2 * 16000, abs=0.05 * 16000)
    assert span.padded_fraction == pytest.approx(0.7, abs=0.02)


def test_sound_that_begins_late_and_has_a_hole(tmp_path: Path) -> None:
    whole = write_audio(tmp_path / "w.mkv", np.stack([voice(4.0, 48000)] * 2), 48000, "pcm_s16le", "s16")
    images = [flat(64, 64, 80)] * 25
    file = repack(whole, tmp_path / "hole.mkv", lambda n, packet: None if 60 <= n < 100 else packet)
    found = sound_intervals(file, read_timeline(file))
    assert np.abs(np.subtract(found, [(0, 60 * 1024 / 48000), (100 * 1024 / 48000, 4.0)])).max() < 0.03
    span = read_audio(file, 1.0, 32000)
    assert span.gap_samples == pytest.approx(40 * 1024 / 3, abs=20)
    assert span.padded_fraction == pytest.approx(span.gap_samples / 32000)
    late = write_video(
        tmp_path / "late.mkv", images, audio=np.stack([voice(1.0, 48000)] * 2), audio_rate=48000, audio_start=24000
    )
    ((begin, _),) = sound_intervals(late, read_timeline(late))
    assert begin == pytest.approx(0.5, abs=0.03)


def test_no_sound_has_no_intervals(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", [flat(64, 64, 80)] * 10)
    assert sound_intervals(file, read_timeline(file)) == []
    assert read_audio(file, 0.0, 6400).padded_fraction == 1.0


def test_streams_are_read_from_their_start(tmp_path: Path) -> None:
    speech = voice(1.0, 16000)
    data = write_pcm(tmp_path / "a.wav", np.stack([speech, -speech], axis=1), 16000).read_bytes()
    stream = io.BytesIO(data)
    first = read_whole_audio(stream)
    assert len(first) == 16000 and np.array_equal(read_whole_audio(stream), first)
    assert np.array_equal(read_audio(stream, 0.0, 16000).samples, first)


def test_shared_inputs(shared: Path) -> None:
    early = shared / "failing" / "audio_ends_early.mp4"
    ((begin, end),) = sound_intervals(early, read_timeline(early))
    assert (begin, end) == pytest.approx((0, 0.32), abs=0.03)
    inverted = read_sound(shared / "failing" / "inverted_2s.wav")
    assert np.abs(inverted.samples).max() > 0.1 and "cancel" in inverted.notes[0]
