"""Random numbers of a training as fields of its items: the reading processes draw them, and a step need not.

What is drawn for a sample is a pure function of its slot. Where the network is on a GPU, drawing in a step would let it
wait for the host; drawn here, the numbers come with the batch, out of pinned memory.
"""

from __future__ import annotations

from typing import Protocol

from torch.utils.data import Dataset

from shards.loader import Batch, SlotDataset
from shards.microbatches import Share
from shards.reader import ShardReader


class Draw(Protocol):
    """What is drawn for an item; reading processes get it in a pickle."""

    def __call__(self, item: Batch, /) -> Batch:
        """Fields that an item gets, by its `slot`; they replace those of the same names."""
        ...


class DrawnDataset(Dataset[Batch]):
    """Items of a data set, each with what is drawn for its slot.

    Of several data sets together the slot is that of the mixture, and of a sample in place of another one that of the
    first, so this goes around both: `shards.replacements.replacing` and `shards.mixture.divide` reach through it.

    Args:
        dataset: The data set.
        draw: Item → fields that it gets.
    """

    def __init__(self, dataset: SlotDataset, draw: Draw) -> None:
        self.dataset, self.draw = dataset, draw

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def readers(self) -> tuple[ShardReader, ...]:
        """Readers of the samples."""
        return self.dataset.readers

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot or share."""
        return self.dataset.key(at)

    def __getitem__(self, at: int | Share) -> Batch:
        """Item of a slot; or of a share, where the data set takes shares."""
        item = self.dataset[at]  # type: ignore[index]
        return item | self.draw(item)
