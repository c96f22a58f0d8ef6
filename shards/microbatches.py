"""Which slots make up a microbatch, the unit that ranks share: a pure function of (seed, number of the microbatch).

A step of a training is M microbatches; rank r of W takes the microbatches step · M + a · W + r, a = 0 … M / W - 1. So
every number of ranks that divides M gets the same microbatches, and the whole state is one integer: how many were
handed out. A microbatch has equally many slots, or clips of like length up to a number of seconds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shards.order import SampleOrder
from talkinghead import rng
from talkinghead.timebase import FPS

_GROWTH = 1.1
"""Longest over shortest clip of a bucket: up to a tenth of a clip is left out when all are read as long as the
shortest."""
_WHOLE = int(FPS)
"""Clips of a second or more are read for whole seconds, in frames: convolutions on a GPU are set up anew for each
length that they meet, and so meet few."""


@dataclass(frozen=True)
class Share:
    """A slot, and the frames that are read of its clip."""

    slot: int
    frames: int | None = None
    """Number of frames; None: as the data set's settings say."""

    @classmethod
    def of(cls, at: int | Share) -> Share:
        """What a data set is asked for, as a share."""
        return at if isinstance(at, Share) else cls(at)

    @property
    def item(self) -> int | Share:
        """What a data set is asked for: the slot alone where its settings say how many frames are read."""
        return self.slot if self.frames is None else self


class Microbatches(Protocol):
    """Number of a microbatch → what it holds."""

    def shares(self, number: int, /) -> list[Share]:
        """Slots of a microbatch; each slot of an epoch is in exactly one."""
        ...

    def epoch(self, count: int, /) -> float:
        """Epochs after so many microbatches, as a fraction, too."""
        ...


class EqualMicrobatches:
    """Microbatches of equally many slots, one after the other.

    Args:
        size: Number of slots in each.
        num_samples: Number of samples of an epoch.
    """

    def __init__(self, size: int, num_samples: int) -> None:
        if size < 1:
            raise ValueError(f"a microbatch has at least 1 sample, not {size}")
        self.size, self.num_samples = size, num_samples

    def shares(self, number: int) -> list[Share]:
        """Slots of a microbatch."""
        return [Share(slot) for slot in range(number * self.size, (number + 1) * self.size)]

    def epoch(self, count: int) -> float:
        """Epochs after so many microbatches."""
        return count * self.size / self.num_samples


class BucketedMicrobatches:
    """Microbatches of clips of like length, of as many as last a number of seconds together.

    In every epoch the clips of a bucket keep the epoch's order, and are dealt out in groups; the last group of a bucket
    may be smaller. All groups are then shuffled. Each epoch has equally many. All clips of a group are read as long as
    its shortest, for whole seconds; a clip of more than the seconds alone is cut to them. So there are few shapes: at
    most two sizes for each bucket, and lengths of whole seconds.

    Args:
        num_frames: Frames of each sample, `[N]`.
        seconds: Most seconds of a microbatch.
        seed: Seed of the shuffling.

    Raises:
        ValueError: The seconds are no number above 0, or no frame lasts so little.
    """

    def __init__(self, num_frames: np.ndarray, seconds: float, seed: int) -> None:
        self.most = int(seconds * FPS) if 0 < seconds < float("inf") else 0
        if self.most < 1:
            raise ValueError(f"a microbatch must last at least one frame (0.04 s), not {seconds} s")
        self.num_frames = _whole_seconds(np.minimum(num_frames, self.most))
        """Frames of each sample that are read at most, `[N]`."""
        self.seed = seed
        self.order = SampleOrder(len(num_frames), seed)
        self.buckets = _buckets(self.num_frames)
        """Bucket of each sample, `[N]`."""
        longest = np.zeros(self.buckets.max() + 1, np.int64)
        np.maximum.at(longest, self.buckets, self.num_frames)
        self.sizes = np.maximum(1, self.most // longest)
        """Samples of a microbatch of each bucket."""
        counts = np.bincount(self.buckets, minlength=len(longest))
        self.per_epoch = int((-(-counts // self.sizes)).sum())
        """Microbatches of an epoch."""
        self._groups = functools.lru_cache(2)(self._deal)  # a step may span two epochs

    # Workers make the groups anew; the cache cannot be pickled.
    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_groups"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._groups = functools.lru_cache(2)(self._deal)

    def shares(self, number: int) -> list[Share]:
        """Slots of a microbatch, all read as long as the shortest."""
        epoch, place = divmod(number, self.per_epoch)
        positions = self._groups(epoch)[place]
        frames = int(self.num_frames[self.order.permutation(epoch)[positions]].min())
        first = epoch * self.order.num_samples
        return [Share(first + int(position), frames) for position in positions]

    def epoch(self, count: int) -> float:
        """Epochs after so many microbatches."""
        return count / self.per_epoch

    def _deal(self, epoch: int) -> list[np.ndarray]:
        """Positions of the epoch in groups."""
        buckets = self.buckets[self.order.permutation(epoch)]
        groups = []
        for bucket, size in enumerate(self.sizes.tolist()):
            positions = np.flatnonzero(buckets == bucket)
            groups += np.split(positions, range(size, len(positions), size)) if len(positions) else []
        # Raw bits sorted, as in `SampleOrder`: NumPy never changes a bit generator's stream.
        bits = np.random.PCG64(rng.key_bits(self.seed, "microbatch order", epoch)).random_raw(len(groups))
        return [groups[number] for number in np.argsort(bits, kind="stable")]


def _buckets(num_frames: np.ndarray) -> np.ndarray:
    """Bucket of each length, `[N]`: from the shortest on, each a tenth longer than the one before."""
    shortest = max(1, int(num_frames.min()))
    steps = np.floor(np.log(np.maximum(num_frames, 1) / shortest) / np.log(_GROWTH)).astype(np.int64)
    # Numbered without gaps.
    return np.unique(steps, return_inverse=True)[1]


def _whole_seconds(num_frames: np.ndarray) -> np.ndarray:
    """Lengths without what is left over from whole seconds, `[N]`; those below one second as they are."""
    return np.where(num_frames < _WHOLE, num_frames, num_frames // _WHOLE * _WHOLE)
