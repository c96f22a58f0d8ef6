"""Clocks that jump and stamps that are damaged: every frame is kept, in its place, with its sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.media_file import open_media
from talkinghead.media.timeline import Timeline, read_timeline
from talkinghead.media.video_source import VideoSource
from tests.support.damaged_clock import (
    MKV_TICKS,
    TS_TICKS,
    number_of,
    numbered,
    numbered_video,
    restamp_mkv,
    restamp_ts,
    tone,
)
from tests.support.media_files import write_audio, write_video


def _shown(path: Path) -> list[int]:
    """Numbers of the images that are shown at 25 fps."""
    with VideoSource(path) as source:
        frames = constant_rate(source.frames(), source.info.start_s, None, source.info.tick_s)
        return [number_of(frame.image) for frame in frames]


def _frames(path: Path) -> list[tuple[int, float, int]]:
    """Number, time and segment of every frame."""
    with VideoSource(path) as source:
        return [(number_of(f.image), f.time_s, f.segment) for f in source.frames()]


def _packet_times(path: Path, kind: str, timeline: Timeline) -> list[float]:
    """Mended presentation times of a stream's packets."""
    with open_media(path) as container:
        stream = container.streams.best(kind)
        mender, origin = timeline.mender(kind), timeline.origin_of(container)
        times = []
        for packet in container.demux(stream):
            if packet.size and mender.mend(packet) is not None and packet.pts is not None:
                times.append(float(packet.pts * packet.time_base) - origin)
        return times


def _after(packet: int, seconds: float, ticks: int, kinds: tuple[str, ...] = ("video", "audio")):
    """From a video packet on (the sound: from the same time on), the clock shows so much more."""
    first = {"video": packet, "audio": round(packet / 25 * 44100 / 1024)}
    return lambda kind, number, old: old + (kind in kinds and number >= first[kind]) * round(seconds * ticks)


@pytest.mark.parametrize("bf", [0, 2])
def test_two_recordings_joined_by_cat(tmp_path: Path, bf: int) -> None:
    one = numbered_video(tmp_path / "one.ts", 40, sound=True, bf=bf)
    two = numbered_video(tmp_path / "two.ts", 40, sound=True, bf=bf, first=40)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert _shown(both) == list(range(80))
    frames = _frames(both)
    assert [segment for _, _, segment in frames] == [0] * 40 + [1] * 40
    assert np.diff([time for _, time, _ in frames]) == pytest.approx(np.full(79, 0.04), abs=1e-4)
    timeline = read_timeline(both)
    assert timeline.notes() == ["the clock jumps once: each part was moved to follow the one before"]
    # The sound has the same distance to the images as in each of the recordings.
    alone = read_timeline(one)
    lead = _packet_times(one, "audio", alone)[0] - _packet_times(one, "video", alone)[0]
    second = timeline.segments[1]
    sound = [time for time in _packet_times(both, "audio", timeline) if time > second.start_s - 0.1]
    assert min(abs(time - second.start_s - lead) for time in sound) < 1e-4


@pytest.mark.parametrize(
    ("container", "seconds"), [("ts", -1.0), ("ts", 7.0), ("ts", 90.0), ("mkv", -1.0), ("mkv", 7.0)]
)
@pytest.mark.parametrize("bf", [0, 2])
def test_a_clock_that_jumps_in_both_streams(tmp_path: Path, container: str, seconds: float, bf: int) -> None:
    ticks, restamp = (TS_TICKS, restamp_ts) if container == "ts" else (MKV_TICKS, restamp_mkv)
    file = restamp(numbered_video(tmp_path / f"v.{container}", 80, sound=True, bf=bf), _after(40, seconds, ticks))
    assert _shown(file) == list(range(80))
    assert len(read_timeline(file).segments) == 2


def test_a_clock_that_jumps_many_times(tmp_path: Path) -> None:
    def change(kind: str, number: int, old: int) -> int:
        packet = number if kind == "video" else round(number * 1024 / 44100 * 25)
        return old + (packet // 20 * 17 % 7) * 10 * TS_TICKS

    file = restamp_ts(numbered_video(tmp_path / "v.ts", 100, sound=True), change)
    assert _shown(file) == list(range(100))
    assert [s.first_packets["video"] for s in read_timeline(file).segments] == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("seconds", [-1.0, 30.0])
@pytest.mark.parametrize(("kind", "off_s"), [("video", 1e-4), ("audio", 2e-3)])
def test_only_one_clock_jumps(tmp_path: Path, kind: str, off_s: float, seconds: float) -> None:
    """Images that jump go on in their place next to the sound, which keeps its stamps; and the other way round."""
    file = numbered_video(tmp_path / "v.ts", 80, sound=True)
    sound = _packet_times(file, "audio", read_timeline(file))
    restamp_ts(file, _after(40, seconds, TS_TICKS, (kind,)))
    assert _shown(file) == list(range(80))
    timeline = read_timeline(file)
    assert len(timeline.segments) == 2
    assert _packet_times(file, "audio", timeline) == pytest.approx(sound, abs=off_s)


def test_a_gap_of_the_images_takes_its_sound_along(tmp_path: Path) -> None:
    """The sound goes on through 2 s without images: those 2 s are left out of both."""
    ticks = [*range(25), *range(75, 100)]
    file = write_video(tmp_path / "v.mp4", numbered(50), ticks=ticks, options={"crf": "1", "bf": "0"}, audio=tone(4.0))
    assert _shown(file) == list(range(50))
    timeline = read_timeline(file)
    assert [round(s.raw_start_s, 2) for s in timeline.segments] == [0.0, 3.0]
    sound = _packet_times(file, "audio", timeline)
    assert max(sound) < 2.03 and len(sound) == pytest.approx(2.0 * 44100 / 1024, abs=3)
    # A longer step is allowed when it is asked for: then the file is as it was.
    with VideoSource(file, max_step_s=3.0) as source:
        assert source.timeline.is_plain
        frames = list(constant_rate(source.frames(), 0.0, None, source.info.tick_s))
        assert len(frames) == 100


def test_a_gap_of_the_sound_is_silence_and_no_jump(tmp_path: Path) -> None:
    file = numbered_video(tmp_path / "v.ts", 100, sound=True)
    restamp_ts(file, lambda kind, number, old: old)
    whole = read_timeline(file)
    assert whole.is_plain
    # The last quarter of the sound is said to be late by a gap in which the video goes on.
    short = write_video(
        tmp_path / "s.mkv", numbered(100), options={"crf": "1", "bf": "0"}, audio=tone(1.0), audio_start=2 * 44100
    )
    assert read_timeline(short).is_plain


def test_pauses_within_the_largest_step_stay(tmp_path: Path) -> None:
    ticks = [*range(25), *range(44, 69)]  # a pause of 0.8 s
    file = write_video(tmp_path / "v.mp4", numbered(50), ticks=ticks, options={"crf": "1", "bf": "0"})
    assert read_timeline(file).is_plain
    assert _shown(file) == [*range(25), *[24] * 19, *range(25, 50)]


@pytest.mark.parametrize("container", ["ts", "mkv"])
@pytest.mark.parametrize(
    "where",
    [(0,), (30,), (59,), (20, 21, 22, 23), (10, 12, 14), (30, 31, 45), tuple(range(5, 60, 10)), tuple(range(20, 32))],
)
@pytest.mark.parametrize("seconds", [25.0, -0.9, 0.5])
def test_outliers_take_their_place_among_their_neighbours(
    tmp_path: Path, container: str, where: tuple[int, ...], seconds: float
) -> None:
    if (seconds < 0 and where == (0,)) or (0 < seconds < 1 and where == (59,)):
        return  # a pause after the first frame, or before the last, which is allowed
    ticks, restamp = (TS_TICKS, restamp_ts) if container == "ts" else (MKV_TICKS, restamp_mkv)
    file = numbered_video(tmp_path / f"v.{container}", 60, gop=60)
    restamp(file, lambda kind, number, old: old + (number in where) * round(seconds * ticks))
    frames = _frames(file)
    assert [number for number, _, _ in frames] == list(range(60))
    assert np.diff([time for _, time, _ in frames]) == pytest.approx(np.full(59, 0.04), abs=0.0021)
    assert _shown(file) == list(range(60))
    timeline = read_timeline(file)
    assert len(timeline.segments) == 1
    if seconds > 1:
        assert timeline.outliers == {"video": frozenset(where)}
        assert f"{len(where)} damaged time stamp" in timeline.notes()[0]


@pytest.mark.parametrize("container", ["ts", "mkv"])
def test_an_outlier_among_reordered_frames(tmp_path: Path, container: str) -> None:
    ticks, restamp = (TS_TICKS, restamp_ts) if container == "ts" else (MKV_TICKS, restamp_mkv)
    for packet in (5, 6, 7):
        file = numbered_video(tmp_path / f"v.{container}", 60, bf=2, gop=60)
        restamp(file, lambda kind, number, old, packet=packet: old + (number == packet) * 25 * ticks)
        assert _shown(file) == list(range(60)), packet


def test_an_outlier_of_the_sound(tmp_path: Path) -> None:
    file = numbered_video(tmp_path / "v.ts", 80, sound=True)
    restamp_ts(file, lambda kind, number, old: old + (kind == "audio" and number == 3) * 40 * TS_TICKS)
    timeline = read_timeline(file)
    assert timeline.outliers.keys() == {"audio"} and len(timeline.segments) == 1
    assert max(_packet_times(file, "audio", timeline)) < 3.3


def test_missing_and_repeated_stamps_are_no_jumps(tmp_path: Path) -> None:
    file = numbered_video(tmp_path / "missing.ts", 60, gop=60)
    restamp_ts(file, lambda kind, number, old: old, without=lambda kind, number: number % 7 == 3)
    assert _shown(file) == list(range(60))
    twice = numbered_video(tmp_path / "twice.ts", 60, gop=60)
    restamp_ts(twice, lambda kind, number, old: old - (number % 10 == 5) * 3600)
    assert read_timeline(twice).is_plain


def test_a_counter_of_33_bits_that_begins_anew(tmp_path: Path) -> None:
    plain = numbered_video(tmp_path / "plain.ts", 100, sound=True, bf=2)
    before = _packet_times(plain, "audio", read_timeline(plain))
    for seconds in (2.5, 61.0):
        file = tmp_path / "v.ts"
        file.write_bytes(plain.read_bytes())
        start = (1 << 33) - round(seconds * TS_TICKS)
        slow = 1 if seconds < 10 else 20  # time for the counter to reach its end
        restamp_ts(file, lambda kind, number, old, start=start, slow=slow: start + slow * old)
        timeline = read_timeline(file)
        assert len(timeline.segments) == 1
        with VideoSource(file) as source:
            times = [frame.time_s for frame in source.frames()]
        assert np.diff(times) == pytest.approx(np.full(99, 0.04 * slow), abs=1e-3)
        assert np.diff(_packet_times(file, "audio", timeline)) == pytest.approx(slow * np.diff(before), abs=1e-3)


def test_a_counter_that_begins_anew_after_a_jump(tmp_path: Path) -> None:
    """FFmpeg makes up for a counter's end only where the recording began before it."""
    file = numbered_video(tmp_path / "v.ts", 100, sound=True)
    near_the_end = ((1 << 33) - 3 * TS_TICKS) / TS_TICKS
    restamp_ts(file, _after(20, near_the_end, TS_TICKS))
    assert _shown(file) == list(range(100))
    timeline = read_timeline(file)
    assert len(timeline.segments) == 2
    assert max(_packet_times(file, "audio", timeline)) < 4.2


def test_only_one_of_the_counters_has_begun_anew_at_the_start(tmp_path: Path) -> None:
    """The first image lies half a second before the sound, and the counter ends in between."""
    file = numbered_video(tmp_path / "v.ts", 50, sound=True)
    restamp_ts(file, lambda kind, number, old: old - (kind == "video" and number == 0) * round(0.5 * TS_TICKS))
    with VideoSource(file) as source:
        assert source.info.start_s == pytest.approx(0, abs=1e-3) and source.audio is not None
        assert source.audio.start_s == pytest.approx(0.48, abs=0.03)
        assert [number_of(frame.image) for frame in source.frames()] == list(range(50))
        assert not source.timeline.is_plain and source.timeline.notes() == [], "nothing was damaged or moved"


def test_first_frames_without_a_stamp_lie_before_the_others(tmp_path: Path) -> None:
    """A Matroska block before zero has no time for FFmpeg; the frame is kept, and hides none of those after it."""
    file = numbered_video(tmp_path / "v.mkv", 50, sound=True)
    restamp_mkv(file, lambda kind, number, old: old - (kind == "video" and number < 2) * 3 * MKV_TICKS)
    frames = _frames(file)
    assert [number for number, _, _ in frames] == list(range(50))
    assert np.diff([time for _, time, _ in frames]) == pytest.approx(np.full(49, 0.04), abs=0.0021)


def test_times_of_both_streams_are_mended(tmp_path: Path) -> None:
    """Headers know nothing of a joint: the second half would be missing from both."""
    one = numbered_video(tmp_path / "one.ts", 50, sound=True)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() * 2)
    with VideoSource(one) as source, VideoSource(both) as twice:
        for single, joined in ((source.info, twice.info), (source.audio, twice.audio)):
            assert single is not None and joined is not None
            assert single.end_s == pytest.approx(2.0, abs=0.05) and joined.end_s == pytest.approx(4.0, abs=0.05)


def test_a_start_before_zero_and_an_edit_list(tmp_path: Path) -> None:
    file = write_video(
        tmp_path / "v.mp4", numbered(50), options={"crf": "1", "bf": "2"}, ticks=list(range(25, 75)), audio=tone(3.0)
    )
    timeline = read_timeline(file)
    assert timeline.is_plain and timeline.notes() == []
    with VideoSource(file) as source:
        assert source.info.start_s == pytest.approx(1.0, abs=0.03)
    assert _shown(file) == list(range(50))


def test_images_that_begin_hours_after_the_sound_has_ended(tmp_path: Path) -> None:
    start = 5 * 3600 * 25
    file = write_video(
        tmp_path / "v.mp4", numbered(50), options={"crf": "1"}, ticks=list(range(start, start + 50)), audio=tone(2.0)
    )
    with VideoSource(file) as source:
        assert source.info.start_s < 0.1 and not source.timeline.is_plain
    assert _shown(file) == list(range(50))


@pytest.mark.parametrize("hours", [1, 10])
def test_no_frame_is_shown_for_hours(tmp_path: Path, hours: int) -> None:
    """Two images, ten hours apart, in a file of a few kilobytes: they can show two steps at most."""
    far = hours * 3600 * 25
    for ticks in ([0, 1, far], [0, far, far + 1], [0, far, 2 * far, 3 * far]):
        file = write_video(tmp_path / "v.mp4", numbered(len(ticks)), ticks=ticks, options={"crf": "1", "bf": "0"})
        with VideoSource(file) as source:
            frames = constant_rate(source.frames(), source.info.start_s, None, source.info.tick_s)
            assert sum(1 for _ in frames) <= 25 * len(ticks)


def test_a_last_frame_that_is_said_to_last_for_hours(tmp_path: Path) -> None:
    file = write_video(tmp_path / "v.mp4", numbered(3), ticks=[0, 1, 3], options={"crf": "1", "bf": "0"})
    data = bytearray(file.read_bytes())
    hours = (10 * 3600 * 12800).to_bytes(4, "big")
    # The table of durations has a run for each of the steps 1, 2, 1; the headers' durations would cut it short.
    at = data.index(b"stts")
    assert int.from_bytes(data[at + 8 : at + 12], "big") == 3
    data[at + 32 : at + 36] = hours
    for name, place in ((b"mdhd", 20), (b"elst", 12)):
        at = data.index(name)
        data[at + place : at + place + 4] = hours
    file.write_bytes(data)
    with VideoSource(file) as source:
        assert source.info.end_s is not None and source.info.end_s > 3600
        assert [f.end_s - f.time_s for f in source.frames()][-1] == 1.0
        assert len(list(constant_rate(source.frames(), 0.0, None, source.info.tick_s))) == 3 + 25


def test_a_file_that_ends_in_the_middle_after_a_jump(tmp_path: Path) -> None:
    one = numbered_video(tmp_path / "one.ts", 40)
    two = numbered_video(tmp_path / "two.ts", 40, first=40)
    both = tmp_path / "both.ts"
    whole = one.read_bytes() + two.read_bytes()
    both.write_bytes(whole[: len(one.read_bytes()) + len(two.read_bytes()) * 6 // 10])
    numbers = _shown(both)
    assert numbers[:50] == list(range(50)) and len(numbers) < 80


def test_sound_alone(tmp_path: Path) -> None:
    file = write_audio(tmp_path / "a.flac", tone(2.0), 44100, "flac", "s16")
    assert read_timeline(file).is_plain
    one, two = (write_audio(tmp_path / f"{n}.ts", tone(2.0), 44100, "aac", "fltp") for n in (1, 2))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    timeline = read_timeline(both)
    assert len(timeline.segments) == 2
    assert np.diff(_packet_times(both, "audio", timeline)).max() < 0.05


def test_steps_forwards_of_sound_alone_are_silence(tmp_path: Path) -> None:
    """Whether it paused, or its packets are long: nothing says that the clock was another one."""
    for places in ([0, 1, 2, 100, 101, 102], [0, 9, 18, 27], [*range(20), 900]):
        file = _sound_at(tmp_path / "v.mka", places)
        timeline = read_timeline(file)
        if len(places) == 21:  # a last packet alone, which nothing follows
            assert timeline.outliers == {"audio": frozenset({20})} and len(timeline.segments) == 1
        else:
            assert timeline.is_plain


def _sound_at(path: Path, places: list[int]) -> Path:
    """Sound alone, in packets that begin at so many times 0.2 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for place in places:
            packet = av.Packet(np.full(1600, 9, "<i2").tobytes())
            packet.time_base, packet.stream = Fraction(1, 5), stream
            packet.pts = packet.dts = place
            packet.duration = 1
            container.mux(packet)
    return path


def test_avi_stores_no_stamps_that_could_jump(tmp_path: Path) -> None:
    one = numbered_video(tmp_path / "one.avi", 40)
    both = tmp_path / "both.avi"
    both.write_bytes(one.read_bytes() + one.read_bytes())
    assert read_timeline(both).is_plain
    assert _shown(both)[:40] == list(range(40))


def test_a_stream_of_bytes_is_read_as_a_file(tmp_path: Path) -> None:
    one, two = numbered_video(tmp_path / "one.ts", 20), numbered_video(tmp_path / "two.ts", 20, first=20)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with both.open("rb") as stream:
        timeline = read_timeline(stream)
    assert timeline.segments == read_timeline(both).segments


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    file = numbered_video(tmp_path / "v.ts", 40)
    assert read_timeline(file).is_plain
    file.write_bytes(file.read_bytes() * 2)
    assert not read_timeline(file).is_plain


def test_clips_of_the_shared_media_are_plain(media: Path) -> None:
    for folder in ("video", "hard", "derived", "audio"):
        for file in sorted((media / folder).iterdir()):
            if file.suffix != ".jpg" and file.name != "truncated.mp4":
                assert read_timeline(file).is_plain, file.name
