"""Arrays over frames that come in parts: the functions of time that look at neighbours, with a bounded look-ahead.

Each gives the same numbers as its function on the whole array, bit for bit, and holds no more than a part and the
frames that the next one still needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from talkinghead.motion.resampling import interpolation
from talkinghead.motion.smoothing import moving_average

PART = 250
"""Number of frames of a part: 10 s at 25 fps, a megabyte of meshes."""

Rows = TypeVar("Rows", bound=Any)
"""Array or tensor `[n, …]`."""


def equal_parts(
    parts: Iterable[Rows], size: int = PART, join: Callable[[list[Rows]], Rows] = np.concatenate
) -> Iterator[Rows]:
    """The same rows in parts of `size`; the last one may be shorter.

    Args:
        parts: Parts `[n, …]` of any lengths.
        size: Number of rows of a part.
        join: Function that joins parts, `np.concatenate` or `torch.cat`.
    """
    held: list[Rows] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            rows = join(held)
            for first in range(0, count - size + 1, size):
                yield rows[first : first + size]
            held = [rows[count - count % size :]]
            count %= size
    if count:
        yield join(held)


def averaged_parts(
    parts: Iterable[np.ndarray], window: int, average: Callable[[np.ndarray, int], np.ndarray] = moving_average
) -> Iterator[np.ndarray]:
    """A centred moving average of rows that come in parts; half a window is looked ahead.

    Args:
        parts: Parts `[n, …]`.
        window: Number of frames, odd.
        average: Function for whole arrays: `moving_average`, or `narrow_average`.

    Raises:
        ValueError: An even or non-positive window.
    """
    half = window // 2
    held: np.ndarray | None = None
    shown = 0  # rows at the beginning of `held` that only neighbours need
    for part in parts:
        held = part if held is None else np.concatenate((held, part))
        ready = len(held) - half
        if ready > shown:
            yield average(held, window)[shown:ready]
            needed = max(0, ready - half)
            held, shown = held[needed:], ready - needed
    if held is not None and len(held) > shown:
        yield average(held, window)[shown:]


def resampled_parts(
    parts: Iterable[np.ndarray], total: int, fps: float, to_fps: float, count: int
) -> Iterator[np.ndarray]:
    """`resample_frames` of rows that come in parts; one frame is looked ahead.

    Args:
        parts: Parts `[n, …]` of `total` rows in all.
        total: Number of rows.
        fps: Frame rate of the rows.
        to_fps: Frame rate of the result.
        count: Number of rows of the result.

    Raises:
        ValueError: No frames, or a rate that is not positive.
    """
    same = fps == to_fps and count <= total
    first = done = 0  # number of the first row that is held; rows that were given out
    held: np.ndarray | None = None
    for part in parts:
        if same:
            if done < count:
                yield part[: count - done]
                done += len(part)
            continue
        held = part if held is None else np.concatenate((held, part))
        known = first + len(held)
        # Rows of the result whose neighbours are there; positions rise, so the first that lacks one ends them.
        most = count if known >= total else min(count, math.ceil((known + 1) * to_fps / fps) + 1)
        before, after, share = interpolation(np.arange(done, max(done, most)), total, fps, to_fps)
        ready = int((after < known).sum())
        if ready:
            weight = share[:ready].astype(held.dtype).reshape(-1, *[1] * (held.ndim - 1))
            low, high = held[before[:ready] - first], held[after[:ready] - first]
            yield low * (1 - weight) + high * weight
            done += ready
        needed = min(int(before[ready]), known) if ready < len(before) else known - 1
        held, first = held[max(0, needed - first) :], max(first, needed)
