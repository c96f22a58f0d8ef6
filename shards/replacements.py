"""Samples that are read in place of those that cannot be: drawn by key, and written down.

Among 10^5 clips some cannot be decoded, and one of them must not end a training of weeks. The slot of such a clip gets
another sample of the same epoch and data set. Which one is a pure function of the slot and of what can be read, so that
every number of ranks and every resume gets the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast

import numpy as np

from shards.drawn import DrawnDataset
from shards.loader import REPLACED, Batch, ClipDataset, SlotDataset
from shards.microbatches import Share
from shards.mixture import MixtureDataset
from shards.reader import ShardReader
from talkinghead import rng
from talkinghead.runtime.errors import error_text, is_machine_error

log = logging.getLogger(__name__)

_MOST_DRAWN = 30
"""Samples that are drawn for a slot at most: where so many cannot be read, more than clips are at fault."""
_REASON = 300  # characters


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Sample that was read in place of another one."""

    slot: int
    """Slot of training that got it."""
    key: str
    """Key of the sample that cannot be read."""
    replacement: str
    """Key of the sample that was read."""
    reason: str
    """What was wrong, one line."""


def is_clips_fault(error: BaseException) -> bool:
    """Whether a sample alone cannot be read: damaged, cut off, or gone from its shard.

    Not the machine's faults (a store that does not answer, no memory, too many open files), which would replace all
    samples; and not mistakes of ours.
    """
    # FFmpeg's errors are OSErrors or ValueErrors, too.
    return isinstance(error, (ValueError, EOFError, OSError)) and not is_machine_error(error)


class Replacing:
    """Data set whose unreadable samples are replaced; its items then have `replaced`, a `Replacement`.

    A sample is tried twice. The drawn ones are of the same epoch; where a `Share` says how many frames are read, only
    of clips that have as many, if there are any. An item keeps its slot, so that whatever else is drawn for it stays
    the same.

    Args:
        dataset: Data set; of a mixture, each part is replaced by itself: see `replacing`.
        seed: Seed of the drawing.
    """

    def __init__(self, dataset: SlotDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def readers(self) -> tuple[ShardReader, ...]:
        """Readers of the samples."""
        return self.dataset.readers

    def key(self, at: int | Share) -> str:
        """Key of the sample that a slot should have."""
        return self.dataset.key(at)

    def __getitem__(self, at: int | Share) -> Batch:
        """Item of a slot or share, or of one that is read in its place.

        Raises:
            ValueError: None of the samples that were drawn can be read.
            OSError: The machine is at fault.
        """
        try:
            return self._read(at)
        except (ValueError, EOFError, OSError) as error:
            if not is_clips_fault(error):
                raise
            return self._other(at, error)

    def _read(self, at: int | Share) -> Batch:
        try:
            return self.dataset[at]  # type: ignore[index]  a share only where the data set takes shares
        except (ValueError, EOFError, OSError) as error:
            if not is_clips_fault(error):
                raise
        return self.dataset[at]  # type: ignore[index]

    def _other(self, at: int | Share, error: Exception) -> Batch:
        slot, frames = Share.of(at).slot, Share.of(at).frames
        key, reason = self.dataset.key(at), " ".join(error_text(error).split())[:_REASON]
        slots = self._slots(slot, frames)
        tries = min(_MOST_DRAWN, len(slots))
        for attempt in range(tries):
            place = int(rng.uniform(self.seed, "replacement", slot, attempt) * len(slots))
            drawn, slots = int(slots[place]), np.delete(slots, place)
            try:
                item = self._read(drawn if frames is None else Share(drawn, frames))
            except (ValueError, EOFError, OSError) as another:
                if not is_clips_fault(another):
                    raise
                continue
            log.warning("%s cannot be read, and %s is read in its place: %s", key, item["key"], reason)
            replaced = Replacement(slot=slot, key=key, replacement=item["key"], reason=reason)
            return item | {"slot": slot, REPLACED: replaced}
        raise ValueError(
            f"{key} cannot be read ({reason}), nor can any of {tries} samples that were drawn in its place:"
            " make verify lists what is damaged"
        ) from error

    def _slots(self, slot: int, frames: int | None) -> np.ndarray:
        """Slots of the same epoch whose samples may be read in place of a slot's, ascending."""
        epoch, own = divmod(slot, len(self.dataset))
        others = np.delete(np.arange(len(self.dataset)), own)  # positions in the epoch
        if frames is not None and len(others):
            clips = cast("ClipDataset", self.dataset)
            lengths = clips.num_frames[clips.order.permutation(epoch)][others]
            # Where no other clip is as long, the longest ones are, which are padded.
            others = others[lengths >= min(frames, lengths.max())]
        return epoch * len(self.dataset) + others


def replacing(dataset: SlotDataset, seed: int) -> SlotDataset:
    """A data set, or a mixture of several, whose unreadable samples are replaced by others of the same data set."""
    if isinstance(dataset, DrawnDataset):
        return DrawnDataset(replacing(dataset.dataset, seed), dataset.draw)
    if isinstance(dataset, MixtureDataset):
        parts = [Replacing(part, seed) for part in dataset.datasets]
        return MixtureDataset(parts, dataset.order.weights, dataset.order.seed)
    return Replacing(dataset, seed)
