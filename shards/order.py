"""Order of samples in training: a pure function of (seed, epoch).

Training consumes an endless sequence of slots: slot `i` is position `i mod N` of epoch `i div N`. Which of them lie in
one microbatch, the unit that ranks share, says `shards.microbatches`.

Every epoch is shuffled over all samples. Reads are by byte offset, so there is no need to shuffle whole shards first,
which would mix samples less well. (A data set of a billion samples, or one read from an object store through a
whole-shard cache, would deal out blocks of shards first; a million samples take 8 MB and 0.1 s per epoch here.)
"""

from __future__ import annotations

import functools

import numpy as np

from talkinghead import rng


def spread(total: int, count: int) -> list[int]:
    """Numbers out of 0 … `total` - 1, `count` of them or all where there are fewer, evenly apart."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()


class SampleOrder:
    """Slots of training → (epoch, sample).

    Args:
        num_samples: Number of samples N in an epoch.
        seed: Seed of the shuffling.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("there are no samples to put in order")
        self.num_samples = num_samples
        self.seed = seed
        self._permutation = functools.lru_cache(2)(self._shuffle)  # a batch may span two epochs

    # Workers get the two numbers: the cache cannot be pickled, and its permutations can be made again.
    def __reduce__(self) -> tuple[type[SampleOrder], tuple[int, int]]:
        return (SampleOrder, (self.num_samples, self.seed))

    def permutation(self, epoch: int) -> np.ndarray:
        """Samples of an epoch in order, `[N]`, each once. The array is shared: read only."""
        return self._permutation(epoch)

    def sample(self, epoch: int, position: int) -> int:
        """Sample at one position of an epoch."""
        return int(self.permutation(epoch)[position])

    def at(self, slot: int) -> tuple[int, int]:
        """Epoch and sample of a slot."""
        epoch, position = divmod(slot, self.num_samples)
        return epoch, self.sample(epoch, position)

    def _shuffle(self, epoch: int) -> np.ndarray:
        # Sort raw bits: NumPy promises that a bit generator's stream never changes, but makes no promise for its
        # `permutation`.
        bits = np.random.PCG64(rng.key_bits(self.seed, "sample order", epoch)).random_raw(self.num_samples)
        return np.argsort(bits, kind="stable")  # stable: equal bits keep the order of the samples
