"""Data sets of a training: where they lie, how often each is drawn from, and whether they go together."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shards.loader import SlotDataset
from shards.manifest import read_manifest
from shards.mixture import MixtureDataset, shares
from shards.reader import ShardReader
from shards.replacements import replacing
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import error_text

log = logging.getLogger(__name__)

DATA_VARIABLE = "TALKINGHEAD_TRAIN_DATA"
"""Environment variable with the data sets of a training, where config.json must not name them in full (credentials)."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class DataSets:
    """Data sets of a training."""

    locations: tuple[str, ...]
    """Folder or URI of each."""
    weights: tuple[float, ...] = ()
    """How often each is drawn from, in relation to the others; empty: by the number of its samples."""

    def __post_init__(self) -> None:
        if not self.locations or not all(location.strip() for location in self.locations):
            raise ValueError("the location of a data set is empty: name its folder or URI")
        if len(set(self.locations)) < len(self.locations):
            raise ValueError(f"a data set is named twice: {', '.join(self.locations)}")
        if self.weights:
            if len(self.weights) != len(self.locations):
                raise ValueError(
                    f"{len(self.locations)} data sets have {len(self.weights)} weights: name one for each"
                    " (--data-weights), in the order of --data and --more-data"
                )
            shares(self.weights)

    @classmethod
    def of(cls, data: DataSets | str) -> DataSets:
        """Data sets, given as such, or the location of a single one."""
        return data if isinstance(data, DataSets) else cls(locations=(data,))

    def to_text(self) -> str:
        """All of it as a text, for a variable of the environment."""
        return json.dumps([self.locations, self.weights])

    @classmethod
    def from_text(cls, text: str) -> DataSets:
        """Inverse of `to_text`."""
        locations, weights = json.loads(text)
        return cls(locations=tuple(locations), weights=tuple(weights))

    def in_full(self) -> DataSets:
        """The data sets by which they can be read: those of `DATA_VARIABLE` where it is set, else these."""
        given = os.environ.get(DATA_VARIABLE)
        return DataSets.from_text(given) if given else self

    def licences(self) -> dict[str, int] | None:
        """Licence → number of samples over all data sets; None where one cannot be read any more, which is no reason to
        fail."""
        counts: Counter[str] = Counter()
        try:
            for location in self.locations:
                counts.update(read_manifest(Storage(location)).licences)
        except (OSError, ValueError) as error:
            log.warning("warning: the licences of the data are not noted next to the weights: %s", error_text(error))
            return None
        return dict(sorted(counts.items()))

    def mixed(self, datasets: Sequence[SlotDataset], seed: int) -> SlotDataset:
        """Samples of all of them as one order.

        Args:
            datasets: Samples of each.
            seed: Seed of the mixture.
        """
        if len(datasets) == 1:
            return datasets[0]
        return MixtureDataset(datasets, self.weights or [len(dataset) for dataset in datasets], seed)


def together(datasets: Sequence[SlotDataset], seed: int) -> SlotDataset | None:
    """Samples of all data sets as one order, each drawn from by the number of its samples; None of none.

    A sample that cannot be read is replaced by another.

    Args:
        datasets: Samples of those that have some.
        seed: Seed of the mixture.
    """
    if len(datasets) < 2:
        return next((replacing(dataset, seed) for dataset in datasets), None)
    return replacing(MixtureDataset(datasets, [len(dataset) for dataset in datasets], seed), seed)


def check_together(readers: Sequence[ShardReader]) -> None:
    """Raise `ValueError` unless the training clips of data sets can be mixed.

    A key must be in one of them only. A derived column must have the same version in all, since other versions hold
    other things. And who is held out in one may not be trained on in another.

    Args:
        readers: Training clips of each.
    """
    for number, one in enumerate(readers):
        for two in readers[number + 1 :]:
            if both := sorted(set(one.keys) & set(two.keys)):
                raise ValueError(f"{one.name} and {two.name} both have {_some(both)}: a sample may be in one only")
            for column in sorted(one.joined.keys() & two.joined.keys()):
                if one.joined[column] != two.joined[column]:
                    raise ValueError(
                        f"{one.name} and {two.name} have different versions of the column {column}"
                        f" ({one.joined[column]} and {two.joined[column]}), which hold different things: name one that"
                        f" both have (--config.join {column}@VERSION), or make it (make derive COLUMNS={column})"
                    )
        for two in readers:
            if one is not two and (both := sorted(_held_out(one) & _trained(two))):
                raise ValueError(
                    f"{_some(both)} is held out in {one.name} and trained on in {two.name}, so that validation would"
                    " see what was learnt: pack both with the same --group-by, or choose others (--config.person)"
                )


def _trained(reader: ShardReader) -> set[str]:
    return set(reader.index.texts("split_group")[reader.rows].tolist())


def _held_out(reader: ShardReader) -> set[str]:
    index = reader.index
    rows = ~index.equals("split", "train") & index.numbers("keep").astype(bool)
    return set(index.texts("split_group")[rows].tolist())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
