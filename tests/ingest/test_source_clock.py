"""Times of the data set's metadata on the timeline of a source whose clock jumps, and the way back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ingest.source_clock import SourceClock
from talkinghead.media.media_file import open_media, start_of
from talkinghead.media.timeline import Segment, Timeline, read_timeline
from tests.support.damaged_clock import TS_TICKS, numbered_video, restamp_ts


def _timeline(*parts: tuple[float, float, float], plain: bool = False) -> Timeline:
    """Segments from start, first image in the file, and end of the last one in the file."""
    ends = [start for start, _, _ in parts[1:]] + [math.inf]
    segments = tuple(
        Segment(start, end, raw_start, raw_end, {})
        for (start, raw_start, raw_end), end in zip(parts, ends, strict=True)
    )
    return Timeline(segments, {}, 1.0, 0.04, plain, {} if plain else {"video": (parts[0][0], 99.0)}, {})


HELD = SourceClock(_timeline((0.0, 1.4, 3.4), (2.0, 13.4, 20.0)), 1.4)
"""Two seconds of images from 0:00 on, none for ten seconds, then more from 0:12 on; the file's own zero is at 1.4."""
JOINED = SourceClock(_timeline((0.0, 0.0, 5.0), (5.0, 0.0, 4.0)))
"""Two recordings whose clocks both begin at 0."""


@pytest.mark.parametrize("clock", [SourceClock(None), SourceClock(_timeline((0.0, 0.0, math.inf), plain=True))])
def test_a_plain_clock_changes_nothing(clock: SourceClock) -> None:
    assert clock.interval(1.5, None) == (1.5, None) and clock.interval(None, 2.5) == (None, 2.5)
    assert clock.time(1.25) == 1.25


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((None, None), (None, None)),
        ((0.5, 1.5), (0.5, 1.5)),
        ((13.0, 14.0), (3.0, 4.0)),
        ((1.0, 13.0), (1.0, 3.0)),
        ((5.0, 13.0), (2.0, 3.0)),
        ((1.0, 5.0), (1.0, 2.0)),
        ((40.0, 50.0), (30.0, 40.0)),
    ],
)
def test_intervals_are_in_the_time_of_players(asked: tuple, found: tuple) -> None:
    assert HELD.interval(*asked) == pytest.approx(found)


def test_times_go_back() -> None:
    assert [HELD.time(time_s) for time_s in (0.0, 1.96, 2.0, 3.0)] == pytest.approx([0.0, 1.96, 12.0, 13.0])
    assert HELD.time(2.0 - 1e-5) == pytest.approx(12.0, abs=1e-4), "a tick early"
    assert [JOINED.time(time_s) for time_s in (4.96, 5.0, 6.0)] == pytest.approx([4.96, 0.0, 1.0])


def test_of_times_that_come_twice_the_first_are_meant() -> None:
    assert JOINED.interval(1.0, 4.5) == pytest.approx((1.0, 4.5))
    assert JOINED.interval(1.0, 9.0) == pytest.approx((1.0, 5.0)), "not into the second recording"


def test_a_header_far_from_the_images_is_not_believed() -> None:
    damaged = SourceClock(_timeline((0.0, 1.4, 3.4), (2.0, 13.4, 20.0)), 95443.7)
    assert damaged.interval(13.0, 14.0) == HELD.interval(13.0, 14.0)


def test_a_video_that_runs_on_through_a_jump_of_the_sound_keeps_its_time() -> None:
    clock = SourceClock(_timeline((0.0, 0.0, 2.0), (1.97, 2.0, 4.0)))
    assert clock.interval(3.0, None)[0] == pytest.approx(3.0) and clock.time(3.0) == pytest.approx(3.0)


@pytest.mark.parametrize("bf", [0, 3])
def test_a_joint_of_the_sound_alone_cuts_no_interval(tmp_path: Path, bf: int) -> None:
    """The video's clock runs on, also where images are stored in another order than they are shown in."""
    file = numbered_video(tmp_path / "v.ts", 100, sound=True, bf=bf)
    half = round(50 / 25 * 44100 / 1024)
    restamp_ts(file, lambda kind, number, old: old - 5 * TS_TICKS * (kind == "audio" and number >= half))
    timeline = read_timeline(file)
    assert len(timeline.segments) == 2, "the sound's clock jumps"
    with open_media(file) as container:
        clock = SourceClock(timeline, start_of(container))
    start, end = clock.interval(0.5, 3.5)
    assert start is not None and end is not None and end - start == pytest.approx(3.0, abs=1e-3)
    assert [clock.time(time_s) - time_s for time_s in (0.5, 3.5)] == pytest.approx([clock.time(0.0)] * 2, abs=1e-3)
