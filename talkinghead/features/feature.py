"""A feature: rows that a loader computes from a window of a clip, with the frames around it that it looks at.

Computing a window gives the bits of the same frames of the whole clip, also at both ends: a feature says how many
frames it looks back and ahead, reading brings them, and where the clip ends sooner, it is told how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from talkinghead.schema import check_name

AUDIO = "audio"
"""Need that is the clip's sound."""


class FeatureSample(Protocol):
    """What a feature reads of a sample, such as one of `shards.reader.ShardReader`."""

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        ...

    def audio(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Sound of `count` frames from `first` on, float32 `[count * 640]` at 16 kHz in -1 … 1."""
        ...

    def annotation(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows of a column that belong to `count` frames from `first` on."""
        ...


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a feature is computed from: the wanted frames, and those around them that it asked for and the clip has."""

    count: int
    """Number of wanted frames."""
    before: int
    """Number of frames before the wanted ones; fewer than the feature's only at the beginning of the clip."""
    after: int
    """Number of frames after them; fewer than the feature's only at the end."""
    inputs: Mapping[str, np.ndarray]
    """Need → its values for all `before + count + after` frames: sound `[640 · frames]`, or rows of a column."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A feature. Each row is a function of the frames of its context alone, whatever else is in the window."""

    name: str
    """Name in the items of a loader; differs from those of columns."""
    needs: tuple[str, ...]
    """`audio`, or names of columns."""
    compute: Callable[[Window], np.ndarray]
    """Window → rows of the wanted frames, `[count · rows, …]`."""
    before: int = 0
    """Number of frames before a frame that its rows depend on."""
    after: int = 0
    """Number of frames after it."""
    rows: int = 1
    """Rows for each frame."""

    def __post_init__(self) -> None:
        check_name(self.name, "feature")
        if min(self.before, self.after) < 0 or self.rows < 1 or not self.needs:
            raise ValueError(f"the feature {self.name} needs nothing, has no rows, or a context below 0")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it needs."""
        return tuple(need for need in self.needs if need != AUDIO)

    def context(self, first: int, count: int, num_frames: int) -> tuple[int, int]:
        """First frame that `count` frames from `first` on depend on, and the one after the last, as far as a clip of
        `num_frames` has them."""
        return max(0, first - self.before), min(num_frames, first + count + self.after)


def read_feature(sample: FeatureSample, feature: Feature, first: int = 0, count: int | None = None) -> np.ndarray:
    """Rows of a feature for a window of frames, `[count · rows, …]`.

    Args:
        sample: The sample.
        feature: The feature.
        first: Number of the first frame.
        count: Number of frames; None: to the end.

    Raises:
        ValueError: The window does not lie in the clip, or what the feature needs is missing or damaged.
    """
    count = sample.num_frames - first if count is None else count
    if first < 0 or count < 1 or first + count > sample.num_frames:
        raise ValueError(f"frames {first} … {first + count - 1} are not in a clip of {sample.num_frames} frames")
    # The context, as far as the clip has it.
    start, stop = feature.context(first, count, sample.num_frames)
    inputs = {
        need: sample.audio(start, stop - start) if need == AUDIO else sample.annotation(need, start, stop - start)
        for need in feature.needs
    }
    rows = feature.compute(Window(count=count, before=first - start, after=stop - first - count, inputs=inputs))
    assert len(rows) == count * feature.rows, f"{feature.name} made {len(rows)} rows for {count} frames"
    return rows
