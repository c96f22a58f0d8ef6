"""In which order windows are predicted and frames denoised, so that few frames of a long video are at work at once.

Sampling one step after the other over the whole video needs all of its frames in memory, and shows none before the
last step. But a window's prediction at a step needs only that its own frames have done the steps before, and frames can
do a step as soon as all windows over them are predicted. So the first frames can be finished while later ones have not
begun: each window may be at most one step ahead of its neighbours, and the windows at work form a slope about as many
windows long as there are steps. The same numbers are computed, from the same numbers, as over the whole video at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from talkinghead.pipelines.lmk2video.context_windows import WindowLayout


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
        layout: Of the windows.
        num_steps: Of the sampler.
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
        layout: Of the windows.
        num_steps: Of the sampler.

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
