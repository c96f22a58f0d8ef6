"""Windows of frames that a network sees at once: how they lie over a video, what each says of a frame, and their order.

Sampling one step after the other over the whole video needs all of its frames in memory, and shows none before the
last step. But a window's prediction at a step needs only that its own frames have done the steps before, and frames can
do a step as soon as all windows over them are predicted. So the first frames can be finished while later ones have not
begun: each window may be at most one step ahead of its neighbours, and the windows at work form a wavefront, a slope
about as many windows long as there are steps (`plan`). The same numbers are computed, from the same numbers, as over
the whole video at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

Weighting = Literal["triangular", "uniform"]
"""How much the windows over a frame count: the more the nearer the frame is to their middle, or all the same."""

Frames = tuple[int, ...]


def open_windows(num_frames: int, size: int, overlap: int) -> tuple[Frames, ...]:
    """Windows over a video of any length, none of which leads from its end to its beginning.

    Args:
        num_frames: Frames of the video.
        size: Frames of a window; a shorter video has one window of its own length.
        overlap: Frames that neighbours share. The last window ends with the video and may share more.

    Raises:
        ValueError: No frames, or an overlap that is not shorter than the window.
    """
    _check(num_frames, size, overlap)
    if num_frames <= size:
        return (tuple(range(num_frames)),)
    stride = size - overlap
    last = num_frames - size
    starts = [*range(0, last, stride), last]
    return tuple(tuple(range(start, start + size)) for start in starts)


def published_windows(num_frames: int, size: int = 16, overlap: int = 4) -> tuple[Frames, ...]:
    """The windows of AniPortrait's program, where the video is a closed loop: the last one ends with its first frames.

    Args:
        num_frames: Frames of the video.
        size: Frames of a window; a shorter video has one window of its own length.
        overlap: Frames that neighbours share.

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
    """Neighbouring frames over which the same windows lie: they are computed together, step by step."""

    frames: range
    windows: Frames
    """Numbers of the windows, in order."""

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """Windows over a video, and the blocks of frames into which they divide it.

    Args:
        windows: Frames of each window, neighbours in time (a closed loop may lead from the last frame to the first).
            Together they cover every frame from 0 on.
        weighting: How much each window over a frame counts.
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
        """F."""
        return self.blocks[-1].frames.stop

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """In the order of their frames, without a gap; no block leaves a window and comes back to it."""
        covering: dict[int, list[int]] = {}
        firsts: set[int] = {0}
        for number, window in enumerate(self.windows):
            for frame in window:
                covering.setdefault(frame, []).append(number)
            # Two windows may follow each other on the same frames where a loop closes: a block ends there too.
            firsts.add(window[0])
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
        place = {block.frames.start: number for number, block in enumerate(self.blocks)}
        return tuple(tuple(place[frame] for frame in window if frame in place) for window in self.windows)

    def shares(self, block: int) -> np.ndarray:
        """How much each window over a block says of its frames: `[windows, frames]` float32, 1 in sum over windows."""
        frames = self.blocks[block].frames
        weights = np.array([self._weights(number, frames) for number in self.blocks[block].windows])
        return (weights / weights.sum(axis=0)).astype(np.float32)

    def _weights(self, number: int, frames: Sequence[int]) -> list[float]:
        if self.weighting == "uniform":
            return [1.0] * len(frames)
        window = self.windows[number]
        first = window.index(frames[0])
        return [float(min(at + 1, len(window) - at)) for at in range(first, first + len(frames))]


def usual_overlap(size: int) -> int:
    """Frames that neighbouring windows of so many frames share where nothing else is asked: a quarter."""
    return size // 4


def lay_windows(num_frames: int, size: int, overlap: int, *, closed: bool, independent: bool) -> WindowLayout:
    """The windows that a pipeline lays over a video: the fewest that its networks allow.

    Args:
        num_frames: Frames of the video.
        size: Frames of a window.
        overlap: Frames that neighbours share.
        closed: Lay them as AniPortrait's program does: `published_windows`, all of which count alike.
        independent: Frames know nothing of each other, so a second prediction would be the same again.
    """
    if closed:
        return WindowLayout(windows=published_windows(num_frames, size, overlap), weighting="uniform")
    return WindowLayout(windows=open_windows(num_frames, size, 0 if independent else overlap))


class Predict(NamedTuple):
    """Predict a window, all of whose blocks have done `step` steps."""

    window: int
    step: int


class Advance(NamedTuple):
    """Let a block do a step, for which all windows over it are predicted."""

    block: int
    step: int


class Finish(NamedTuple):
    """Hand out a block that has done all steps. Blocks are finished in the order of their frames."""

    block: int


Action = Predict | Advance | Finish


def plan(layout: WindowLayout, num_steps: int) -> Iterator[Action]:
    """What to do, in order: every window predicted once in each step, every block advanced in each step and finished.

    Args:
        layout: How the windows lie.
        num_steps: Steps of the sampler.
    """
    predicted = [0] * len(layout.windows)
    advanced = [0] * len(layout.blocks)
    for number in range(len(layout.blocks)):
        if advanced[number] < num_steps:
            for window, step in _needed(layout, number, num_steps, predicted):
                yield Predict(window, step)
                predicted[window] = step + 1
                for block in layout.window_blocks[window]:
                    if all(predicted[other] > step for other in layout.blocks[block].windows):
                        advanced[block] = step + 1
                        yield Advance(block, step)
        yield Finish(number)


def most_at_work(layout: WindowLayout, num_steps: int) -> tuple[int, int]:
    """Most frames that have begun and are not finished, at any time of `plan`.

    Args:
        layout: How the windows lie.
        num_steps: Steps of the sampler.

    Returns:
        Frames, each counted once; and once for every window over it that has begun and is not wholly finished.
    """
    unfinished = [len(set(blocks)) for blocks in layout.window_blocks]
    begun_blocks: set[int] = set()
    begun_windows: set[int] = set()
    blocks = windows = most_blocks = most_windows = 0
    for action in plan(layout, num_steps):
        if isinstance(action, Predict) and action.window not in begun_windows:
            begun_windows.add(action.window)
            windows += len(layout.windows[action.window])
            new = set(layout.window_blocks[action.window]) - begun_blocks
            begun_blocks |= new
            blocks += sum(len(layout.blocks[number]) for number in new)
            most_blocks, most_windows = max(most_blocks, blocks), max(most_windows, windows)
        elif isinstance(action, Finish):
            blocks -= len(layout.blocks[action.block])
            for window in layout.blocks[action.block].windows:
                unfinished[window] -= 1
                if not unfinished[window]:
                    windows -= len(layout.windows[window])
    return most_blocks, most_windows


def _needed(layout: WindowLayout, block: int, num_steps: int, predicted: list[int]) -> list[Predict]:
    """Predictions without which a block cannot be finished, in an order in which they can be made.

    The windows over the block must do all steps, windows that share frames with those all but one, and so on. Step by
    step this is possible: who must do a step has neighbours who must have done all steps before.
    """
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
