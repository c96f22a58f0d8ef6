"""Constant rate from irregular times: every output frame shows what a player would show at that moment."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.media.frame_clock import constant_rate, gap_between
from talkinghead.media.video_source import VideoSource
from talkinghead.timebase import frame_time


@dataclass(frozen=True)
class Shown:
    time_s: float
    end_s: float


def _frames(ticks: list[int], tick: float, last: float) -> list[Shown]:
    ends = [*ticks[1:], ticks[-1] + last / tick]
    return [Shown(t * tick, e * tick) for t, e in zip(ticks, ends, strict=True)]


@settings(deadline=None)  # a busy machine is no fault
@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    start=st.integers(0, 5000),
    tick=st.sampled_from([1 / 1000, 1 / 12800, 1 / 90000, 1 / 30000]),
    length=st.one_of(st.none(), st.floats(0.05, 4)),
)
def test_shows_the_last_frame_that_has_begun(gaps: list[int], start: int, tick: float, length: float | None) -> None:
    ticks = [start]
    for gap in gaps:
        ticks.append(ticks[-1] + max(1, round(gap * 0.001 / tick)))
    frames = _frames(ticks, tick, last=0.05)
    begin = ticks[0] * tick
    end = None if length is None else begin + length
    shown = list(constant_rate(frames, begin, end, tick))
    available = min(frames[-1].end_s, float("inf") if end is None else end) - begin
    assert len(shown) == int((available + tick / 2) * 25 + 1e-6)
    for k, frame in enumerate(shown):
        expected = max(f.time_s for f in frames if f.time_s <= begin + frame_time(k) + tick / 2)
        assert frame.time_s == expected


@settings(deadline=None)
@given(st.integers(2, 300))
def test_constant_25_passes_through(count: int) -> None:
    frames = _frames([k * 512 for k in range(count)], 1 / 12800, last=0.04)
    assert list(constant_rate(frames, 0.0, None, 1 / 12800)) == frames


def test_a_first_frame_that_comes_late_is_shown_until_then() -> None:
    """Where its stamp is damaged, the start of a stream is known less well than its other times."""
    frames = _frames([2, 3, 4], 0.04, last=0.04)
    assert list(constant_rate(frames, 0.0, None, 0.001)) == [frames[0]] * 3 + frames[1:]


def test_30_fps_rounded_to_milliseconds_keeps_a_second_a_second() -> None:
    frames = _frames([round(k * 1000 / 29.97) for k in range(300)], 0.001, last=0.033)
    shown = list(constant_rate(frames, 0.0, None, 0.001))
    assert len(shown) == 250
    assert all(0 <= frame_time(k) + 5e-4 - frame.time_s < 1 / 29.97 + 0.001 for k, frame in enumerate(shown))
    assert len(set(shown)) == 250, "25 out of 30: none is shown twice"


@pytest.mark.parametrize("early", [-0.4, 0.0, 0.4, 0.6])
def test_half_a_tick_is_rounding(early: float) -> None:
    """Ends and starts that lie up to half a tick before a 25th count as that 25th; more does not."""
    tick, off = 1 / 1000, early / 1000
    whole = early < 0.5
    source = _frames([0, 40, 80], tick, last=0.04)
    assert len(list(constant_rate(source, 0.0, 0.12 - off, tick))) == (3 if whole else 2), "the interval's end"
    ending = [*source[:2], Shown(0.08, 0.12 - off)]
    assert len(list(constant_rate(ending, 0.0, None, tick))) == (3 if whole else 2), "the last frame's end"
    late = [Shown(0.0, 0.04), Shown(0.04 + off, 0.08), Shown(0.08, 0.12)]
    assert list(constant_rate(late, 0.0, None, tick))[1] == late[1 if whole else 0], "a frame's start"


def test_an_interval_that_ends_in_a_gap_ends_there() -> None:
    source = _frames([0, 10, 20], 0.04, last=0.04)
    shown = list(constant_rate(source, 0.0, 0.6, 0.001))
    assert shown == [source[0]] * 10 + [source[1]] * 5
    assert list(constant_rate(source, 0.0, 0.4, 0.001)) == [source[0]] * 10


def test_a_frame_that_goes_back_in_time_is_left_out() -> None:
    frames = [Shown(0.0, 0.04), Shown(0.2, 0.24), Shown(0.08, 0.12), Shown(0.24, 0.28)]
    assert [f.time_s for f in constant_rate(frames, 0.0, None, 1e-6)] == [0.0] * 5 + [0.2, 0.24]


def test_variable_rate_of_a_real_file(media: Path) -> None:
    with VideoSource(media / "hard" / "video-retalking_face_1.mp4") as source:
        times = [frame.time_s for frame in source.frames()]
        shown = [f.time_s for f in constant_rate(source.frames(), times[0], None, source.info.tick_s)]
    steps = sorted(round(b - a, 3) for a, b in itertools.pairwise(times))
    assert steps[0] == 0.033 and steps[-1] > 0.06, "the rate of this file varies"
    assert len(shown) == 152
    for k, time_s in enumerate(shown):
        now = times[0] + frame_time(k) + source.info.tick_s / 2
        assert time_s == max(t for t in times if t <= now)


def test_the_gap_between_two_frames_counts_25ths() -> None:
    frames = _frames([0, 512, 1536, 1749], 1 / 12800, last=0.04)
    gaps = [gap_between(one, two) for one, two in itertools.pairwise(frames)]
    assert gaps[:2] == pytest.approx([1.0, 2.0]) and 0.4 < gaps[2] < 0.43, "the next frame, one dropped, 60 per second"
