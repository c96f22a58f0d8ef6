"""Windows over a video: nothing left out, none from the end to the beginning, and weights that add up to 1.

Also the order of work: everything once, nothing before what it needs, and few frames in progress at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.pipelines.lmk2video.context_windows import (
    Advance,
    Finish,
    Predict,
    WindowLayout,
    most_at_work,
    open_windows,
    plan,
    published_windows,
)

SIZES = st.integers(1, 18).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))
SMALL_SIZES = st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@given(frames=st.integers(1, 90), sizes=SIZES)
def test_open_windows_are_runs_of_one_length(frames: int, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    windows = open_windows(frames, size, overlap)
    assert {len(window) for window in windows} == {min(size, frames)}
    assert all(window == tuple(range(window[0], window[-1] + 1)) for window in windows), "no window leaps"
    starts = [window[0] for window in windows]
    assert starts == sorted(set(starts)) and starts[0] == 0 and windows[-1][-1] == frames - 1
    gaps = np.diff(starts)
    assert (gaps[:-1] == size - overlap).all() and (gaps[-1:] <= size - overlap).all(), "neighbours share enough"


@given(frames=st.integers(1, 90), sizes=SIZES, closed=st.booleans(), uniform=st.booleans())
def test_blocks_divide_the_video(frames: int, sizes: tuple[int, int], closed: bool, uniform: bool) -> None:
    windows = (published_windows if closed else open_windows)(frames, *sizes)
    layout = WindowLayout(windows=windows, weighting="uniform" if uniform else "triangular")
    assert layout.num_frames == frames
    assert [frame for block in layout.blocks for frame in block.frames] == list(range(frames))
    for number, window in enumerate(windows):
        of_blocks = [frame for block in layout.window_blocks[number] for frame in layout.blocks[block].frames]
        assert of_blocks == list(window), "blocks lie in a window one after the other"
    for number, block in enumerate(layout.blocks):
        assert list(block.windows) == [at for at, window in enumerate(windows) if block.frames[0] in window]
        shares = layout.shares(number)
        assert shares.shape == (len(block.windows), len(block)) and (shares > 0).all()
        np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
        if uniform:
            assert np.ptp(shares) == 0


def test_the_middle_of_a_window_counts_most() -> None:
    layout = WindowLayout(windows=open_windows(28, 16, 4))
    np.testing.assert_allclose(layout.shares(1), [[0.8, 0.6, 0.4, 0.2], [0.2, 0.4, 0.6, 0.8]], atol=1e-6)


def test_published_windows_are_the_published_ones(shared: Path) -> None:
    with np.load(shared / "goldens" / "scheduler.npz", allow_pickle=False) as golden:
        cases = [name for name in golden.files if name.startswith("windows.")]
        assert len(cases) == 7
        for name in cases:
            assert np.array_equal(published_windows(int(name.split(".")[1])), golden[name]), name


def test_refused() -> None:
    for make in (open_windows, published_windows):
        with pytest.raises(ValueError, match="no frames"):
            make(0, 16, 4)
        with pytest.raises(ValueError, match="cannot overlap by 16"):
            make(20, 16, 16)
    with pytest.raises(ValueError, match="weighting"):
        WindowLayout(windows=((0, 1),), weighting="round")  # pyright: ignore[reportArgumentType]


@settings(deadline=None)
@given(frames=st.integers(1, 60), sizes=SMALL_SIZES, steps=st.integers(1, 9), closed=st.booleans())
def test_any_plan_is_sound(frames: int, sizes: tuple[int, int], steps: int, closed: bool) -> None:
    """Replay that refuses predictions of frames that lack a step, and steps of frames that lack a prediction."""
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
    """Frames in progress lie within about `steps` windows, whatever the length of the video."""
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
    """Twice as many frames are in progress in 25 steps of a minute; counted by windows, overlaps count repeatedly."""
    opened = most_at_work(WindowLayout(windows=open_windows(1500, 16, 4)), 25)
    closed = most_at_work(WindowLayout(windows=published_windows(1500, 16, 4)), 25)
    assert 300 < opened[0] < 330 and 580 < closed[0] < 640
    assert 1.25 < opened[1] / opened[0] < 1.4 and 1.25 < closed[1] / closed[0] < 1.4
    assert most_at_work(WindowLayout(windows=open_windows(5, 16, 4)), 25) == (5, 5)


def test_the_first_frames_come_early() -> None:
    """Before the first frames are handed out, only the slope of the wavefront is predicted."""
    steps = 6
    layout = WindowLayout(windows=open_windows(300, 16, 4))
    actions = list(plan(layout, steps))
    early = actions[: actions.index(Finish(0))]
    assert sum(isinstance(action, Predict) for action in early) == steps * (steps + 1) // 2


def test_windows_that_share_nothing_come_one_after_the_other() -> None:
    layout = WindowLayout(windows=open_windows(12, 4, 0))
    order = [(action.window, action.step) for action in plan(layout, 3) if isinstance(action, Predict)]
    assert order == [(window, step) for window in range(3) for step in range(3)]
