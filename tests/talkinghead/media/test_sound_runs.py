"""Sound that changes its rate or layout, or whose clock jumps: each part at its time, to the sample."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.audio import read_audio, read_sound, read_whole_audio
from talkinghead.media.media_file import open_media, video_stream
from talkinghead.media.sound_survey import sound_intervals
from talkinghead.media.timeline import read_timeline
from tests.support.media_files import flat, write_audio, write_video
from tests.support.sound_files import click_times, repack, ticking, voice, write_runs

SAMPLE_S = 1 / 16000
CODEC_FRAME_S = 1024 / 48000
PRIMING_S = 1024 / 48000
"""The codec's own delay before the first run: its timeline begins there."""


def shaped(samples: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([samples] * channels)


@pytest.mark.parametrize(
    ("first", "second"),
    [((48000, 2), (44100, 1)), ((44100, 1), (48000, 2)), ((48000, 6), (48000, 2)), ((16000, 2), (32000, 6))],
)
def test_a_change_of_rate_or_layout(tmp_path: Path, first: tuple[int, int], second: tuple[int, int]) -> None:
    before, after = [0.3, 0.71, 1.4, 1.8], [0.2, 0.95, 1.5]
    runs = [
        (shaped(ticking(times, 2.0, rate), channels), rate)
        for times, (rate, channels) in ((before, first), (after, second), (before, first))
    ]
    file = write_runs(tmp_path / "a.ts", runs)
    sound = read_sound(file)
    priming = 1024 / first[0]
    expected = [priming + time for time in (*before, *(2 + t for t in after), *(4 + t for t in before))]
    found = click_times(sound.samples)
    assert len(found) == len(expected)
    assert np.abs(np.subtract(found, expected)).max() < SAMPLE_S, "no offset at either change"
    assert len(sound.samples) == pytest.approx(16000 * (6 + priming), abs=16 * 80)
    assert sound.gap_samples <= 2, "the runs meet"


def test_channels_that_cancel_after_a_mono_start(tmp_path: Path) -> None:
    """What the header says of the channels holds for the first run alone."""
    speech = voice(2.0, 48000)
    file = write_runs(tmp_path / "a.ts", [(speech[None], 48000), (np.stack([speech, -speech]), 48000)])
    sound = read_sound(file)
    one, two = np.std(sound.samples[4000:28000]), np.std(sound.samples[36000:60000])
    assert one / two == pytest.approx(1, abs=0.1) and any("cancel" in note for note in sound.notes)


def test_levels_stay_the_same_over_a_change_of_layout(tmp_path: Path) -> None:
    """5.1 with the voice in the centre, then stereo."""
    speech = voice(2.0, 48000)
    centre = np.zeros((6, len(speech)))
    centre[2] = speech
    centre[:2] = 0.03 * np.random.default_rng(0).standard_normal((2, len(speech)))
    found = read_whole_audio(write_runs(tmp_path / "a.ts", [(centre, 48000), (shaped(speech, 2), 48000)]))
    one, two = np.std(found[4000:28000]), np.std(found[36000:60000])
    assert one / two == pytest.approx(1, abs=0.1)


def test_spans_equal_slices_across_a_change(tmp_path: Path) -> None:
    runs = [(shaped(voice(3.0, 48000), 2), 48000), (-0.5 * shaped(voice(3.0, 44100, 1), 1), 44100)]
    file = write_runs(tmp_path / "a.ts", runs)
    whole = read_whole_audio(file)
    for start in (0.0, 0.5, 2.5, 2.97, 3.01, 3.7, 5.1):
        span = read_audio(file, start, 12800)
        first = round(start * 16000)
        expected = whole[first : first + 12800]
        assert np.abs(span.samples[: len(expected)] - expected).max() < 2e-4
        assert span.trailing_silence == 12800 - len(expected)


def test_a_pause_between_runs_is_silence_in_its_place(tmp_path: Path) -> None:
    ticks = [0.5, 1.5]
    file = write_runs(
        tmp_path / "a.ts",
        [(shaped(ticking(ticks, 2.0, 48000), 2), 48000), (shaped(ticking(ticks, 2.0, 44100), 1), 44100)],
        gap_s=0.5,
    )
    sound = read_sound(file)
    expected = [PRIMING_S + time for time in (0.5, 1.5, 3.0, 4.0)]
    assert np.abs(np.subtract(click_times(sound.samples), expected)).max() < SAMPLE_S
    assert sound.gap_samples == pytest.approx(0.5 * 16000, abs=2 * 1024 / 3)


def test_a_change_of_the_sample_format(tmp_path: Path) -> None:
    """Rate and layout stay, the numbers become others: nothing to be seen in the sound."""
    tone = 0.5 * np.sin(np.arange(32000) * 2 * np.pi * 440 / 16000)
    for sample_format, codec in (("s16", "pcm_s16le"), ("flt", "pcm_f32le"), ("s32", "pcm_s24le"), ("u8", "pcm_u8")):
        file = write_audio(tmp_path / f"{codec}.wav", tone[None], 16000, codec, sample_format)
        assert np.abs(read_whole_audio(file) - tone).max() < 1e-2


def flash_times(file: Path) -> list[float]:
    """Times on the re-based timeline at which a bright image follows a dark one."""
    timeline = read_timeline(file)
    times, dark = [], True
    with open_media(file) as container:
        stream = video_stream(container, file.name)
        mender, origin = timeline.mender("video"), timeline.origin_of(container)
        frames: list[tuple[float, float]] = []
        for packet in container.demux(stream):
            mender.mend(packet)
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                assert frame.pts is not None and frame.time_base is not None
                frames.append((float(frame.pts * frame.time_base) - origin, frame.to_ndarray(format="gray").mean()))
    for time_s, light in sorted(frames):
        if light > 128 and dark:
            times.append(time_s)
        dark = light <= 128
    return times


def flashing(path: Path, frames: int, flashes: list[int], audio_codec: str = "aac") -> Path:
    images = [flat(64, 64, 230 if k in flashes else 30) for k in range(frames)]
    sound = ticking([k / 25 for k in flashes], frames / 25, 48000)
    return write_video(path, images, audio=shaped(sound, 2), audio_rate=48000, audio_codec=audio_codec)


@pytest.mark.parametrize("audio_codec", ["aac", "libmp3lame"])
def test_sound_and_images_stay_together_after_streams_are_joined(tmp_path: Path, audio_codec: str) -> None:
    one = flashing(tmp_path / "one.ts", 60, [10, 30, 50], audio_codec)
    two = flashing(tmp_path / "two.ts", 75, [8, 33, 66], audio_codec)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + two.read_bytes() + one.read_bytes())

    def lags(file: Path) -> list[float]:
        clicks, flashes = click_times(read_whole_audio(file)), flash_times(file)
        assert len(clicks) == len(flashes)
        return [click - flash for click, flash in zip(clicks, flashes, strict=True)]

    apart = [*lags(one), *lags(two), *lags(one)]
    together = lags(joined)
    assert len(together) == 9
    assert np.abs(np.subtract(together, apart)).max() < 1e-3, "the same lag in every part"
    assert np.abs(together).max() < CODEC_FRAME_S
    # A span after the seam is that slice of the whole; a stream of bytes is read as the file is.
    whole = read_whole_audio(joined)
    assert np.array_equal(read_audio(joined, 3.0, 16000).samples, whole[48000:64000])
    assert np.array_equal(read_whole_audio(io.BytesIO(joined.read_bytes())), whole)
    # The sound of every part is there.
    (begin, end), *rest = sound_intervals(joined, read_timeline(joined))
    assert not rest and begin < 0.1 and end == pytest.approx(len(whole) / 16000, abs=0.05)


def test_a_pause_in_a_recording_of_sound_alone_stays(tmp_path: Path) -> None:
    """Its clock jumps forwards by more than a video's may; no images say that this is no pause."""
    whole = write_audio(tmp_path / "w.mkv", ticking([0.5, 5.5], 6.0, 48000)[None], 48000, "pcm_s16le", "s16")
    file = repack(whole, tmp_path / "hole.mkv", lambda n, packet: None if 60 <= n < 200 else packet)
    sound = read_sound(file)
    assert np.abs(np.subtract(click_times(sound.samples), [0.5, 5.5])).max() < 1e-3
    assert sound.gap_samples == pytest.approx(140 * 1024 / 3, abs=20)
    assert read_audio(file, 1.0, 64000).gap_samples == pytest.approx(sound.gap_samples, abs=20)


def test_two_streams_of_other_rates_joined(tmp_path: Path) -> None:
    """A jump of the clock and a change of the rate at the same place."""
    one = write_runs(tmp_path / "one.ts", [(shaped(ticking([0.4, 1.2], 2.0, 48000), 2), 48000)])
    two = write_runs(tmp_path / "two.ts", [(shaped(ticking([0.4, 1.2], 2.0, 44100), 1), 44100)])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    found = click_times(read_whole_audio(joined))
    assert len(found) == 4
    # The second part begins where the sound of the first ends, with the delay of its own codec frame.
    assert found[1] - found[0] == pytest.approx(0.8, abs=SAMPLE_S)
    assert found[3] - found[2] == pytest.approx(0.8, abs=SAMPLE_S)


def test_shared_inputs(shared: Path) -> None:
    changed = read_sound(shared / "failing" / "audio_rate_change.ts")
    assert len(changed.samples) > 2.9 * 16000 and np.abs(changed.samples[32000:]).max() > 0.05
    joined = read_sound(shared / "failing" / "cat_two_ts.ts")
    assert len(joined.samples) > 4.9 * 16000 and np.abs(joined.samples[48000:]).max() > 0.05
