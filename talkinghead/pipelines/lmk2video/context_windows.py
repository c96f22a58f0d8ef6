"""Windows of frames that a network takes in at once: their layout over a video, their weights, and their order.

Sampling one step after the other over the whole video needs all of its frames in memory, and finishes none before the
last step. But a window's prediction at a step needs only that its own frames have done the steps before, and frames can
do a step as soon as all windows over them are predicted. So the first frames can be finished while later ones have not
begun: each window may be at most one step ahead of its neighbours, and the windows in progress form a wavefront, a
slope about as many windows long as there are steps (`plan`). The computation is the same as over the whole video at
once, in another order.

Letters of shapes: W windows over a block, n frames of a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

Weighting = Literal["triangular", "uniform"]
"""Weighting of the windows over a frame. `triangular`: more, the nearer the frame is to a window's middle. `uniform`:
all windows alike."""

Frames = tuple[int, ...]
"""Numbers of frames, in the order in which a network takes them in."""


def open_windows(num_frames: int, size: int, overlap: int) -> tuple[Frames, ...]:
    """Windows over a video of any length, in order, without one from its end to its beginning.

    Args:
        num_frames: Number of frames of the video.
        size: Number of frames of a window; a shorter video has one window of its own length.
        overlap: Number of frames that neighbours share. The last window ends with the video and may share more.

    Raises:
        ValueError: No frames, or an overlap that is not shorter than the window.
    """
    _check(num_frames, size, overlap)
    if num_frames <= size:
        return (tuple(range(num_frames)),)
    # The last window is moved back to end with the video, rather than cut short: motion modules learnt full windows.
    stride = size - overlap
    last = num_frames - size
    starts = [*range(0, last, stride), last]
    return tuple(tuple(range(start, start + size)) for start in starts)


def published_windows(num_frames: int, size: int = 16, overlap: int = 4) -> tuple[Frames, ...]:
    """Windows of AniPortrait's program, for which a video is a closed loop: the last ones end with its first frames.

    Args:
        num_frames: Number of frames of the video.
        size: Number of frames of a window; a shorter video has one window of its own length.
        overlap: Number of frames that neighbours share.

    Raises:
        ValueError: No frames, or an overlap that is not shorter than the window.
    """
    _check(num_frames, size, overlap)
    if num_frames <= size:
        return (tuple(range(num_frames)),)
    return tuple(
        tuple(frame % num_frames for frame in range(start, start + size))
        for start in range(0, num_frames, size - overlap)
    )


def _check(num_frames: int, size: int, overlap: int) -> None:
    if num_frames < 1:
        raise ValueError("there are no frames")
    if not 0 <= overlap < size:
        raise ValueError(f"windows of {size} frames cannot overlap by {overlap}: wanted is 0 <= overlap < frames")


@dataclass(frozen=True)
class Block:
    """Neighbouring frames that lie in the same windows and are therefore sampled together."""

    frames: range
    """Numbers of the frames."""
    windows: Frames
    """Numbers of the windows over them, in order."""

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """Windows over a video, and the blocks of frames into which they divide it.

    Args:
        windows: Frames of each window, neighbours in time (a closed loop may lead from the last frame to the first).
            Together they cover every frame from 0 on.
        weighting: Weighting of the windows over a frame.

    Raises:
        ValueError: An unknown weighting.
    """

    windows: tuple[Frames, ...]
    weighting: Weighting = "triangular"

    def __post_init__(self) -> None:
        if self.weighting not in ("triangular", "uniform"):
            raise ValueError(f"weighting must be triangular or uniform, not {self.weighting!r}")
        covered = {frame for window in self.windows for frame in window}
        assert covered == set(range(len(covered))), "windows must cover every frame"

    @property
    def num_frames(self) -> int:
        """Number of frames of the video."""
        return self.blocks[-1].frames.stop

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks in the order of their frames, without a gap; no block leaves a window and comes back to it."""
        # The windows over each frame.
        covering: dict[int, list[int]] = {}
        firsts: set[int] = {0}
        for number, window in enumerate(self.windows):
            for frame in window:
                covering.setdefault(frame, []).append(number)
            # A block also ends where a window begins: one that goes around a whole loop ends right before its own first
            # frame, and these two frames lie in the same windows without being neighbours in it.
            firsts.add(window[0])

        # A new block begins wherever the windows change.
        blocks: list[Block] = []
        start = 0
        for frame in range(1, len(covering) + 1):
            if frame == len(covering) or frame in firsts or covering[frame] != covering[start]:
                blocks.append(Block(range(start, frame), tuple(covering[start])))
                start = frame
        return tuple(blocks)

    @cached_property
    def window_blocks(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the blocks of each window, in the order of the window's frames."""
        # A window consists of whole blocks, so it has each of its blocks' first frames.
        place = {block.frames.start: number for number, block in enumerate(self.blocks)}
        return tuple(tuple(place[frame] for frame in window if frame in place) for window in self.windows)

    def shares(self, block: int) -> np.ndarray:
        """Weights of the windows over a block for each of its frames, float32 `[W, n]`, with sum 1 over windows."""
        frames = self.blocks[block].frames
        weights = np.array([self._weights(number, frames) for number in self.blocks[block].windows])
        return (weights / weights.sum(axis=0)).astype(np.float32)

    def _weights(self, number: int, frames: Sequence[int]) -> list[float]:
        if self.weighting == "uniform":
            return [1.0] * len(frames)
        # Distance to the nearer end of the window, from 1: zero would leave the video's ends without any weight.
        window = self.windows[number]
        first = window.index(frames[0])
        return [float(min(at + 1, len(window) - at)) for at in range(first, first + len(frames))]


def usual_overlap(size: int) -> int:
    """Default number of frames that neighbouring windows of `size` frames share, a quarter."""
    return size // 4


def lay_windows(num_frames: int, size: int, overlap: int, *, closed: bool, independent: bool) -> WindowLayout:
    """Windows of a pipeline over a video, the fewest that its networks allow.

    Args:
        num_frames: Number of frames of the video.
        size: Number of frames of a window.
        overlap: Number of frames that neighbours share.
        closed: Whether windows lie as in AniPortrait's program: `published_windows` with uniform weights.
        independent: Whether frames do not interact. Windows do not overlap then, because a second prediction of a
            frame would equal the first.

    Raises:
        ValueError: No frames, or an overlap that is not shorter than the window.
    """
    if closed:
        return WindowLayout(windows=published_windows(num_frames, size, overlap), weighting="uniform")
    return WindowLayout(windows=open_windows(num_frames, size, 0 if independent else overlap))


class Predict(NamedTuple):
    """Action: predict a window, all of whose blocks have done `step` steps."""

    window: int
    """Number of the window."""
    step: int
    """Number of the step, from 0."""


class Advance(NamedTuple):
    """Action: let a block do a step, for which all windows over it are predicted."""

    block: int
    """Number of the block."""
    step: int
    """Number of the step, from 0."""


class Finish(NamedTuple):
    """Action: hand out a block that has done all steps. Blocks are finished in the order of their frames."""

    block: int
    """Number of the block."""


Action = Predict | Advance | Finish


def plan(layout: WindowLayout, num_steps: int) -> Iterator[Action]:
    """Actions of sampling in order: each window is predicted and each block advanced once a step, then finished.

    Args:
        layout: Layout of the windows.
        num_steps: Number of the sampler's steps.
    """
    # Steps that each window is predicted for, and steps that each block has done.
    predicted = [0] * len(layout.windows)
    advanced = [0] * len(layout.blocks)
    # Only as much as the next block needs: later frames wait, which keeps few of them in memory.
    for number in range(len(layout.blocks)):
        if advanced[number] < num_steps:
            for window, step in _needed(layout, number, num_steps, predicted):
                yield Predict(window, step)
                predicted[window] = step + 1
                # The last window over a block to be predicted lets it do the step.
                for block in layout.window_blocks[window]:
                    if all(predicted[other] > step for other in layout.blocks[block].windows):
                        advanced[block] = step + 1
                        yield Advance(block, step)
        yield Finish(number)


def most_at_work(layout: WindowLayout, num_steps: int) -> tuple[int, int]:
    """Largest number of frames in progress at any time of `plan`, on which memory depends.

    Args:
        layout: Layout of the windows.
        num_steps: Number of the sampler's steps.

    Returns:
        Number of frames in blocks that have begun and are not finished, each counted once; and number of frames in
        windows that have begun and are not wholly finished, each counted once for every such window.
    """
    # Blocks of each window that are still to be finished.
    unfinished = [len(set(blocks)) for blocks in layout.window_blocks]
    begun_blocks: set[int] = set()
    begun_windows: set[int] = set()
    blocks = windows = most_blocks = most_windows = 0
    for action in plan(layout, num_steps):
        # A window's first prediction begins the window, and those of its blocks that no other window has begun.
        if isinstance(action, Predict) and action.window not in begun_windows:
            begun_windows.add(action.window)
            windows += len(layout.windows[action.window])
            new = set(layout.window_blocks[action.window]) - begun_blocks
            begun_blocks |= new
            blocks += sum(len(layout.blocks[number]) for number in new)
            most_blocks, most_windows = max(most_blocks, blocks), max(most_windows, windows)
        # A finished block goes at once, a window with the last of its blocks.
        elif isinstance(action, Finish):
            blocks -= len(layout.blocks[action.block])
            for window in layout.blocks[action.block].windows:
                unfinished[window] -= 1
                if not unfinished[window]:
                    windows -= len(layout.windows[window])
    return most_blocks, most_windows


def _needed(layout: WindowLayout, block: int, num_steps: int, predicted: list[int]) -> list[Predict]:
    """Predictions that are still missing before a block can be finished, in an order in which they can be made.

    The windows over the block must do all steps, windows that share frames with those all but one, and so on. The order
    by steps is possible: a window that must do a step has neighbours that must have done all steps before it.
    """
    # Breadth first from the block's windows, one step less with each neighbour: how many steps each window needs.
    wanted = dict.fromkeys(layout.blocks[block].windows, num_steps)
    found = deque(wanted)
    while found:
        window = found.popleft()
        if wanted[window] <= 1:
            continue
        for shared in layout.window_blocks[window]:
            for other in layout.blocks[shared].windows:
                if other not in wanted:
                    wanted[other] = wanted[window] - 1
                    found.append(other)
    return sorted(
        (Predict(window, step) for window, steps in wanted.items() for step in range(predicted[window], steps)),
        key=lambda action: (action.step, action.window),
    )
