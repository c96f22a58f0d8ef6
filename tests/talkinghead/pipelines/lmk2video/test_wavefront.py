"""The order of work: everything once, nothing before what it needs, and few frames at work at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, open_windows, published_windows
from talkinghead.pipelines.lmk2video.wavefront import Advance, Finish, Predict, most_at_work, plan

SIZES = st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@settings(deadline=None)
@given(frames=st.integers(1, 60), sizes=SIZES, steps=st.integers(1, 9), closed=st.booleans())
def test_any_plan_is_sound(frames: int, sizes: tuple[int, int], steps: int, closed: bool) -> None:
    """A replay that refuses a prediction of frames behind, and a step of frames that are not wholly predicted."""
    layout = WindowLayout(windows=(published_windows if closed else open_windows)(frames, *sizes))
    predicted = [0] * len(layout.windows)
    advanced = [0] * len(layout.blocks)
    finished: list[int] = []
    for action in plan(layout, steps):
        if isinstance(action, Predict):
            assert predicted[action.window] == action.step
            assert all(advanced[block] == action.step for block in layout.window_blocks[action.window])
            predicted[action.window] += 1
        elif isinstance(action, Advance):
            assert advanced[action.block] == action.step
            assert all(predicted[window] == action.step + 1 for window in layout.blocks[action.block].windows)
            advanced[action.block] += 1
        else:
            assert isinstance(action, Finish) and advanced[action.block] == steps
            finished.append(action.block)
    assert predicted == [steps] * len(predicted) and advanced == [steps] * len(advanced)
    assert finished == list(range(len(layout.blocks)))


@pytest.mark.parametrize("frames", [400, 1500])
def test_the_front_is_as_long_as_there_are_steps(frames: int) -> None:
    """However long the video: frames that have begun and are not finished lie within about `steps` windows."""
    steps = 10
    layout = WindowLayout(windows=open_windows(frames, 16, 4))
    begun: set[int] = set()
    widest = 0
    for action in plan(layout, steps):
        if isinstance(action, Predict):
            begun |= set(layout.window_blocks[action.window])
        elif isinstance(action, Finish):
            begun.discard(action.block)
        widest = max(widest, sum(len(layout.blocks[block]) for block in begun))
    assert widest <= (steps + 1) * 12 + 4
    assert most_at_work(layout, steps)[0] == widest


def test_a_closed_loop_has_a_front_at_both_ends() -> None:
    """25 steps of a minute: twice as many frames at work, and windows of their own count each frame as they overlap."""
    opened = most_at_work(WindowLayout(windows=open_windows(1500, 16, 4)), 25)
    closed = most_at_work(WindowLayout(windows=published_windows(1500, 16, 4)), 25)
    assert 300 < opened[0] < 330 and 580 < closed[0] < 640
    assert 1.25 < opened[1] / opened[0] < 1.4 and 1.25 < closed[1] / closed[0] < 1.4
    assert most_at_work(WindowLayout(windows=open_windows(5, 16, 4)), 25) == (5, 5)


def test_the_first_frames_come_early() -> None:
    """Before they are handed out, no more is predicted than the slope of the front needs."""
    steps = 6
    layout = WindowLayout(windows=open_windows(300, 16, 4))
    actions = list(plan(layout, steps))
    early = actions[: actions.index(Finish(0))]
    assert sum(isinstance(action, Predict) for action in early) == steps * (steps + 1) // 2


def test_windows_that_share_nothing_come_one_after_the_other() -> None:
    layout = WindowLayout(windows=open_windows(12, 4, 0))
    order = [(action.window, action.step) for action in plan(layout, 3) if isinstance(action, Predict)]
    assert order == [(window, step) for window in range(3) for step in range(3)]
