"""Samples of several data sets one after the other, for what goes over all of them: fits, and choices of clips.

What a training draws from each is `shards.mixture`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from shards.reader import Sample, ShardReader


class ReaderChain:
    """Samples of readers in their order.

    Args:
        readers: The readers, at least one.
    """

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        self.readers = tuple(readers)
        self._ends = list(itertools.accumulate(map(len, self.readers)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        for reader, end in zip(self.readers, self._ends, strict=True):
            if number < end:
                return reader[number - end]  # from the reader's own end
        raise AssertionError

    @property
    def name(self) -> str:
        """Data sets, for messages."""
        return " and ".join(reader.name for reader in self.readers)

    @property
    def num_frames(self) -> np.ndarray:
        """Number of frames of each sample, `[N]`."""
        return np.concatenate([reader.num_frames for reader in self.readers])

    @functools.cached_property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return [key for reader in self.readers for key in reader.keys]

    @property
    def speakers(self) -> list[str]:
        """Speaker of each sample; the same name in two data sets is one person."""
        return [name for reader in self.readers for name in reader.speakers]

    @property
    def shards(self) -> np.ndarray:
        """Number of the shard of each sample, `[N]`, counted over all data sets."""
        counts = [len(reader.manifest.annotation(reader.version).shards) for reader in self.readers]
        firsts = itertools.accumulate([0, *counts[:-1]])
        return np.concatenate([reader.shards + first for reader, first in zip(self.readers, firsts, strict=True)])
