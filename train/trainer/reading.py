"""Reading of a training, on one rank: its batches, the samples that were read in place of others, and waits for stores.

What a rank notices goes along with the sums that every step exchanges anyway, so that all ranks know and decide the
same, when the figures of the step are read; only a step with a replaced sample needs a further exchange, for the names.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.block_cache import COUNTS, BlockCache
from shards.loader import REPLACED, ClipLoader, SlotDataset
from shards.mixture import divide
from shards.replacements import Replacement, replacing
from talkinghead.files.patience import RETRIES
from train.config import TrainConfig
from train.run.metrics import Replaced, Tracker
from train.task import Batch
from train.trainer.parallel import gather_lists

log = logging.getLogger(__name__)

_FIRST_JUDGED = 100
"""Samples read before a share of them says anything."""
_FEWEST = 10
"""Replaced samples that are never too many: a single clip of a small data set comes again in every epoch."""
_SHOWN = 5  # keys in a message
_FROM_STORE = 4
"""Samples that a reading process reads at once from a store: some wait for their requests while others are decoded."""


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """What a rank noticed as it read the samples of a step."""

    counts: dict[str, float]
    """`samples`, `replaced` (read in place of others), `retries` (requests to stores made again), `waited` (seconds for
    these), `hits` and `misses` (ranges that a cache of a store had, and lacked), to be added up over the ranks."""
    replaced: list[Replacement]
    """Samples that were read in place of others."""


class Reading:
    """Batches of one rank. Every rank makes one, and all call the same methods in the same order.

    Args:
        dataset: Samples by slot.
        config: Settings of the trainer.
        rank: Number of this process.
        world: Number of ranks.
        pin_memory: Whether batches go to a GPU.
        step: Number of steps that are done.

    Raises:
        ValueError: The samples cannot be made into the microbatches that the settings ask for.
    """

    def __init__(
        self, dataset: SlotDataset, config: TrainConfig, *, rank: int, world: int, pin_memory: bool, step: int
    ) -> None:
        self.config = config.reading
        remote = [reader for reader in dataset.readers if reader.ranges.remote]
        if self.config.cache is not None and remote:
            cache = BlockCache(Path(self.config.cache), int(self.config.cache_gb * 1e9))
            for reader in remote:
                reader.ranges.cache = cache
        elif self.config.cache is not None and rank == 0:
            log.warning("reading.cache %s is not used: all data are on a local disk already", self.config.cache)
        self.loader = ClipLoader(
            replacing(dataset, config.seed),
            divide(dataset, size=config.microbatch_size, seconds=config.microbatch_seconds, seed=config.seed),
            rank=rank,
            world=world,
            num_workers=config.num_workers,
            pin_memory=pin_memory,
            at_once=self.config.at_once or (_FROM_STORE if remote else 1),
            timeout_s=config.reading.timeout_s,
            restarts=config.reading.restarts,
        )
        self.loader.load_state_dict({"microbatches": step * config.microbatches})
        self._batches: Iterator[Batch] | None = None
        self._first: Batch | None = None
        # Of the step that is read, on this rank: samples, and those among them that were read in place of others.
        self._samples, self._replaced = 0, list[Replacement]()
        # Over all ranks: since this start, and since the last line of figures.
        self._num_samples, self._num_replaced, self._keys = 0.0, 0, list[str]()
        self._retries, self._waited, self._hits, self._misses = 0.0, 0.0, 0.0, 0.0

    @property
    def epoch(self) -> float:
        """Epochs consumed, as a fraction, too."""
        return self.loader.epoch

    def first(self) -> Batch:
        """Batch that `next` gives next, to look at."""
        if self._first is None:
            self._first = self.next()
        return self._first

    def next(self) -> Batch:
        """Next batch of this rank.

        Raises:
            ValueError: A sample cannot be read, nor can others in its place.
            MachineError: The store cannot be reached, the machine is at fault, or reading processes are lost again and
                again.
        """
        if self._first is not None:
            batch, self._first = self._first, None
            return batch
        if self._batches is None:
            self._batches = iter(self.loader)
        batch = next(self._batches)
        self._replaced += batch.pop(REPLACED, [])
        self._samples += len(batch["keys"])
        return batch

    def noticed(self) -> Noticed:
        """What this rank noticed since this was called last, for `settle`."""
        retries, seconds = RETRIES.take()
        counts = {"samples": self._samples, "replaced": len(self._replaced), "retries": retries, "waited": seconds}
        counts["hits"], counts["misses"] = COUNTS.take()
        noticed = Noticed(counts={name: float(count) for name, count in counts.items()}, replaced=self._replaced)
        self._samples, self._replaced = 0, []
        return noticed

    def settle(self, step: int, noticed: Noticed, sums: Mapping[str, float], tracker: Tracker | None) -> None:
        """Record what all ranks noticed in a step. Collective where a sample was replaced.

        Args:
            step: Number of the step, from 1.
            noticed: What this rank noticed in it.
            sums: Sums of the counts of all ranks, by name.
            tracker: Records, on rank 0.

        Raises:
            ValueError: Too many samples were replaced.
        """
        self._retries, self._waited = self._retries + sums["retries"], self._waited + sums["waited"]
        self._hits, self._misses = self._hits + sums["hits"], self._misses + sums["misses"]
        self._num_samples += sums["samples"]
        if sums["replaced"]:
            mine = [json.dumps(dataclasses.asdict(replacement)) for replacement in noticed.replaced]
            events = sorted(map(json.loads, gather_lists(mine)), key=lambda event: event["slot"])
            self._record(step, events, tracker)

    def _record(self, step: int, events: list[dict[str, Any]], tracker: Tracker | None) -> None:
        self._num_replaced += len(events)
        self._keys += [event["key"] for event in events[: _SHOWN - len(self._keys)]]
        if tracker is not None:
            for event in events:
                tracker.replaced(Replaced(step=step, **event))
        share = self._num_replaced / self._num_samples
        if self._num_samples >= _FIRST_JUDGED and self._num_replaced >= _FEWEST and share > self.config.abort_above:
            raise ValueError(
                f"{self._num_replaced} of {self._num_samples:.0f} samples cannot be read, such as"
                f" {', '.join(dict.fromkeys(self._keys))} ({events[0]['reason']}): make verify lists what is damaged;"
                f" --train.reading.abort-above {self.config.abort_above:g} is the share that may be replaced"
            )

    def figures(self) -> dict[str, float]:
        """Requests to stores that had to be made again and seconds of waiting, and ranges that a cache of a store had
        and lacked, over all ranks since this was asked last: empty without any."""
        found: dict[str, float] = {}
        if self._retries:
            found |= {"store_retries": self._retries, "store_wait_s": self._waited}
        if self._hits or self._misses:
            found |= {"cache_hits": self._hits, "cache_misses": self._misses}
        self._retries, self._waited, self._hits, self._misses = 0.0, 0.0, 0.0, 0.0
        return found

    def close(self) -> None:
        """End the reading processes."""
        if isinstance(self._batches, Generator):
            self._batches.close()
