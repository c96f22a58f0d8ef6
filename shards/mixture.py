"""Several data sets as one order, each with a weight: a pure function of (seed, slot), like the order of one.

Slots are dealt out in blocks of 1,000. In every block each data set has the same number of slots, its share of the
weights to the nearest whole number, in an order drawn for the block. Each data set counts its own slots, so that it
goes through its own epochs without a repetition. Microbatches of clips of like length come from one data set each, and
are dealt out in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from torch.utils.data import Dataset

from shards.drawn import DrawnDataset
from shards.loader import REPLACED, Batch, SlotDataset
from shards.microbatches import BucketedMicrobatches, EqualMicrobatches, Microbatches, Share
from shards.reader import ShardReader
from talkinghead import rng

BLOCK = 1000
"""Slots in a block."""


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Slots of each data set in a block: largest remainders, at least one.

    Raises:
        ValueError: A weight is not above 0 and finite, or there are more data sets than slots in a block.
    """
    if not 0 < len(weights) <= BLOCK:
        raise ValueError(f"{len(weights)} data sets cannot be mixed, only 1 to {BLOCK:,}")
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of a data set is {weight}, must be above 0")
    # Fractions: no rounding decides, so that every machine deals out the same.
    total = sum(Fraction(weight) for weight in weights)
    wanted = [Fraction(weight) * BLOCK / total for weight in weights]
    counts = [max(1, int(share)) for share in wanted]
    # One more to those that lack most, or one less to those that have most too many; of equals, to the first.
    while (left := BLOCK - sum(counts)) > 0:
        lacking = sorted(range(len(counts)), key=lambda number: counts[number] - wanted[number])
        for number in lacking[:left]:
            counts[number] += 1
    while sum(counts) > BLOCK:
        rich = (number for number in range(len(counts)) if counts[number] > 1)
        counts[max(rich, key=lambda number: counts[number] - wanted[number])] -= 1
    return tuple(counts)


class MixtureOrder:
    """Slots of training → (data set, slot of that data set).

    Args:
        weights: Weight of each data set; their sizes do not matter.
        seed: Seed of the shuffling.

    Raises:
        ValueError: Raised by `shares`.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.weights = tuple(weights)
        self.seed = seed
        self.shares = shares(self.weights)
        """Slots of each data set in a block of 1,000."""
        self._block = functools.lru_cache(4)(self._deal)  # a batch may span two blocks

    # As of a `SampleOrder`: the cache cannot be pickled.
    def __reduce__(self) -> tuple[type[MixtureOrder], tuple[tuple[float, ...], int]]:
        return (MixtureOrder, (self.weights, self.seed))

    def at(self, slot: int) -> tuple[int, int]:
        """Number of the data set that a slot draws from, and the slot of that data set."""
        block, place = divmod(slot, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[place])
        return source, block * self.shares[source] + int(ranks[place])

    def _deal(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Data set of each slot of a block, and how many slots before it in the block have the same, both `[1000]`."""
        # Raw bits sorted, as in `SampleOrder`: NumPy never changes a bit generator's stream.
        bits = np.random.PCG64(rng.key_bits(self.seed, "mixture order", block)).random_raw(BLOCK)
        places = np.argsort(bits, kind="stable")
        sources = np.empty(BLOCK, np.int64)
        sources[places] = np.repeat(np.arange(len(self.shares)), self.shares)
        ranks = np.empty(BLOCK, np.int64)
        for source, share in enumerate(self.shares):
            ranks[sources == source] = np.arange(share)
        return sources, ranks


class MixtureDataset(Dataset[Batch]):
    """Slot → item of one of several data sets, a pure function of (data sets, weights, seed, slot).

    Items are those of the data sets, with `source`, the number of the data set, and `slot`, the slot of the mixture.
    What a data set draws for an item is keyed by its own slots: its items are those that it would give alone. A `Share`
    is one of `MixedMicrobatches`.

    Args:
        datasets: The data sets; their items have the same contents.
        weights: Weight of each.
        seed: Seed of the mixture.

    Raises:
        ValueError: There are not as many weights as data sets, or one of them is not above 0.
    """

    def __init__(self, datasets: Sequence[SlotDataset], weights: Sequence[float], seed: int) -> None:
        if len(datasets) != len(weights):
            raise ValueError(f"{len(datasets)} data sets have {len(weights)} weights: name one for each")
        self.datasets = tuple(datasets)
        self.order = MixtureOrder(weights, seed)

    def __len__(self) -> int:
        """Number of samples of all data sets. In so many slots, one with more than its share of the weights has begun
        another epoch of its own, and one with less is not yet through its first."""
        return sum(len(dataset) for dataset in self.datasets)

    @property
    def readers(self) -> tuple[ShardReader, ...]:
        """Readers of all data sets."""
        return tuple(reader for dataset in self.datasets for reader in dataset.readers)

    def __getitem__(self, at: int | Share) -> Batch:
        source, its = self._part(at)
        item = self.datasets[source][its]  # type: ignore[index]  a share of `MixedMicrobatches`: it takes shares
        slot = Share.of(at).slot
        if REPLACED in item:
            item = item | {REPLACED: replace(item[REPLACED], slot=slot)}
        return item | {"slot": slot, "source": source}

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot or share."""
        source, its = self._part(at)
        return self.datasets[source].key(its)

    def _part(self, at: int | Share) -> tuple[int, int | Share]:
        """Number of a data set, and what it is asked for."""
        source, its_slot = self.locate(at)
        return source, Share(its_slot, at.frames) if isinstance(at, Share) else its_slot

    def locate(self, at: int | Share) -> tuple[int, int]:
        """Number of the data set that a slot, or a share of `MixedMicrobatches`, draws from, and the slot of that data
        set."""
        if isinstance(at, Share):
            its_slot, source = divmod(at.slot, len(self.datasets))
            return source, its_slot
        return self.order.at(at)


class MixedMicrobatches:
    """Microbatches of several data sets, each of one of them; which one is drawn as in `MixtureOrder`.

    Slot k of data set s of S is slot k · S + s of the mixture.

    Args:
        parts: Microbatches of each data set.
        weights: Weight of each.
        seed: Seed of the mixture.
    """

    def __init__(self, parts: Sequence[BucketedMicrobatches], weights: Sequence[float], seed: int) -> None:
        self.parts = tuple(parts)
        self.order = MixtureOrder(weights, seed)

    def shares(self, number: int) -> list[Share]:
        """Slots of a microbatch, all read as long as the shortest."""
        source, its_number = self.order.at(number)
        shares = self.parts[source].shares(its_number)
        return [Share(share.slot * len(self.parts) + source, share.frames) for share in shares]

    def epoch(self, count: int) -> float:
        """Epochs after so many microbatches, each as long as all data sets together."""
        return count / sum(part.per_epoch for part in self.parts)


def divide(dataset: SlotDataset, *, size: int, seconds: float | None, seed: int) -> Microbatches:
    """Microbatches of a data set, or of a mixture of several.

    Args:
        dataset: The data set.
        size: Samples of a microbatch; or
        seconds: Most seconds of a microbatch of clips of like length.
        seed: Seed of the shuffling.

    Raises:
        ValueError: The data set has items of one length only, or the seconds hold no frame.
    """
    if seconds is None:
        return EqualMicrobatches(size, len(dataset))
    if isinstance(dataset, DrawnDataset):
        return divide(dataset.dataset, size=size, seconds=seconds, seed=seed)
    if isinstance(dataset, MixtureDataset):
        parts = [_bucketed(part, seconds, seed) for part in dataset.datasets]
        return MixedMicrobatches(parts, dataset.order.weights, seed)
    return _bucketed(dataset, seconds, seed)


def _bucketed(dataset: SlotDataset, seconds: float, seed: int) -> BucketedMicrobatches:
    num_frames = getattr(dataset, "num_frames", None)
    if num_frames is None:
        raise ValueError(
            "the samples of this training all have the same number of frames, so that there is nothing to make"
            " microbatches of by length: leave out --train.microbatch-seconds"
        )
    return BucketedMicrobatches(num_frames, seconds, seed)
