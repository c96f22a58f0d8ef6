"""Order of samples in training: a pure function of (seed, epoch).

Training consumes an endless sequence of slots: slot `i` is position `i mod N` of epoch `i div N`. Global batch `g` of
size `B` is the slots `[g B, (g+1) B)`, and rank `r` of `W` takes the r-th of its `W` equal contiguous parts. So every
world size that divides `B` gets the same global batches, and the whole state is one integer: the number of slots
consumed.

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


def rank_slots(first: int, global_batch: int, rank: int, world: int) -> range:
    """Slots of one rank in the global batch that begins with slot `first`.

    Raises:
        ValueError: The world size does not divide the global batch.
    """
    check_world(global_batch, rank, world)
    # Contiguous parts: joined in the order of the ranks they are the global batch, at every world size.
    share = global_batch // world
    return range(first + rank * share, first + (rank + 1) * share)


def check_world(global_batch: int, rank: int, world: int) -> None:
    """Raise `ValueError` when the ranks cannot share the global batch equally."""
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} does not exist")
    if global_batch < 1 or global_batch % world:
        raise ValueError(
            f"the global batch of {global_batch} samples cannot be shared by {world} ranks: use a multiple"
        )
