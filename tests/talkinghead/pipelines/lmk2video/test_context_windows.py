"""Windows over a video: nothing left out, no leap from the end to the beginning, shares that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.pipelines.lmk2video.context_windows import WindowLayout, open_windows, published_windows

SIZES = st.integers(1, 18).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


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
        assert of_blocks == list(window), "blocks lie in a window one behind the other"
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
