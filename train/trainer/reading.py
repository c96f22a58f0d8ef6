"""Reading of a training, on one rank: its batches, the samples that were read in place of others, and waits for stores.

What a rank notices goes along with the sums that every step exchanges anyway, so that all ranks know and decide the
same; only a step with a replaced sample needs a further exchange, for the names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from shards.loader import REPLACED, ClipLoader, SlotDataset
from shards.mixture import divide
from shards.replacements import Replacement, replacing
from talkinghead.files.patience import RETRIES
from train.config import TrainConfig
from train.run.metrics import Replaced, Tracker
from train.task import Batch
from train.trainer.parallel import gather_lists

_FIRST_JUDGED = 100
"""Samples read before a share of them says anything."""
_FEWEST = 10
"""Replaced samples that are never too many: a single clip of a small data set comes again in every epoch."""
_SHOWN = 5  # keys in a message


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
        self.loader = ClipLoader(
            replacing(dataset, config.seed),
            divide(dataset, size=config.microbatch_size, seconds=config.microbatch_seconds, seed=config.seed),
            rank=rank,
            world=world,
            num_workers=config.num_workers,
            pin_memory=pin_memory,
            timeout_s=config.reading.timeout_s,
            restarts=config.reading.restarts,
        )
        self.loader.load_state_dict({"microbatches": step * config.microbatches})
        self._batches: Iterator[Batch] | None = None
        self._first: Batch | None = None
        # Of the step under way, on this rank: samples, and those among them that were read in place of others.
        self._samples, self._replaced = 0, list[Replacement]()
        # Over all ranks: since this start, and since the last line of figures.
        self._num_samples, self._num_replaced, self._keys = 0.0, 0, list[str]()
        self._retries, self._waited = 0.0, 0.0

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

    def counts(self) -> list[float]:
        """What this rank noticed in a step, to be added up over the ranks for `settle`."""
        retries, seconds = RETRIES.take()
        return [float(self._samples), float(len(self._replaced)), float(retries), seconds]

    def settle(self, step: int, counts: Sequence[float], tracker: Tracker | None) -> None:
        """Record what all ranks noticed in a step. Collective where a sample was replaced.

        Args:
            step: Number of the step, from 1.
            counts: Sums of `counts` over the ranks.
            tracker: Records, on rank 0.

        Raises:
            ValueError: Too many samples were replaced.
        """
        samples, replaced, retries, seconds = counts
        self._retries, self._waited = self._retries + retries, self._waited + seconds
        self._num_samples += samples
        if replaced:
            mine = [json.dumps(dataclasses.asdict(replacement)) for replacement in self._replaced]
            events = sorted(map(json.loads, gather_lists(mine)), key=lambda event: event["slot"])
            self._record(step, events, tracker)
        self._samples, self._replaced = 0, []

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
        """Requests to stores that had to be made again, and seconds of waiting, over all ranks since this was asked
        last: empty without any."""
        found = {"store_retries": self._retries, "store_wait_s": self._waited}
        self._retries, self._waited = 0.0, 0.0
        return found if found["store_retries"] else {}

    def close(self) -> None:
        """End the reading processes."""
        if isinstance(self._batches, Generator):
            self._batches.close()
