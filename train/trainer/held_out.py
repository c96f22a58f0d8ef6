"""Loss on held-out clips: the same samples, noise and timesteps every time, measured by the ranks themselves.

The weights are the current ones, not their averages: so the curve compares with the training loss next to it, and the
gap between the two is what does not generalise. It needs no second copy of the weights, shards or not. The averages
are judged by the validation, through the pipeline that users run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from shards.loader import SlotDataset, collate
from talkinghead.rng import key_bits
from train.config import TrainConfig
from train.task import Batch, Task, Totals
from train.trainer.figures import split, sums_of
from train.trainer.learner import Learner
from train.trainer.parallel import autocast, bare, moved, over_ranks, reshard

log = logging.getLogger(__name__)

PREFIX = "held_out/"


class HeldOut:
    """Held-out samples of a training, of which each rank measures its share.

    A measurement changes nothing: it leaves no gradient, no statistics of a layer and no random state.

    Args:
        task: Task that brings the samples and their loss.
        learner: Module in training.
        critic: Critic of the task's adversary in training.
        config: Number of samples, microbatch, precision and seed.
        device: Device of the module.
        rank: Number of this process.
        world: Number of ranks.
    """

    def __init__(
        self,
        task: Task,
        learner: Learner,
        critic: Learner | None,
        config: TrainConfig,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self.task, self.learner, self.critic, self.config, self.device = task, learner, critic, config, device
        self._rank, self._world = rank, world
        # Whatever a loss draws for a slot is keyed by this seed, so that no sample of the training has the same.
        self.seed = key_bits(config.seed, "held out") >> 65
        count = config.validation.loss_samples
        self._dataset: SlotDataset | None = None
        if config.validation.loss_interval:
            self._dataset = task.held_out(self.seed, count)
            if self._dataset is None and rank == 0:
                log.warning("there is no held-out clip to measure a loss on: %sloss is left out", PREFIX)
        self._read: list[tuple[Batch, bool]] | None = None
        self._total: Totals = {}

    def due(self, step: int) -> bool:
        """Whether the loss is measured after a step, from 1; the last one always is, if any."""
        interval = self.config.validation.loss_interval
        return self._dataset is not None and (step % interval == 0 or step == self.config.steps)

    def measure(self) -> dict[str, float]:
        """Mean of each loss over the samples, and of each partial figure over its own: `held_out/loss`, … Collective.

        Equal on every rank; and for any number of ranks, to rounding. Batch terms are not part of it.
        """
        if (batches := self._batches()) is None:
            return {}
        losses, figures = [], []
        with self._evaluating():
            for batch, counts in batches:
                with autocast(self.config.parallel, self.device):
                    critic = bare(self.critic.module) if self.critic else None
                    result = self.task.loss(
                        bare(self.learner.module),
                        moved(batch, self.device),
                        seed=self.seed,
                        step=0,  # what a loss draws for a step must not change from one measurement to the next
                        total=self._total,
                        critic=critic,
                    )
                # One that another rank counts is gone through only because the ranks gather the weights together.
                size = len(batch["keys"]) if counts else 0
                losses.append({name: loss[:size] for name, loss in result.losses.items()})
                figures.append({name: (value[:size], of[:size]) for name, (value, of) in result.figures.items()})
        sums = sums_of(losses, figures)
        totals = over_ranks(torch.stack(list(sums.values())))
        whole, partial = split(dict(zip(sums, totals, strict=True)))
        samples = self._total["samples"]
        means = {PREFIX + name: value / samples for name, value in whole.items()}
        # A figure of none of the samples has no value, and one of all of them says nothing new.
        some = {name: value / count for name, (value, count) in partial.items() if 0 < count < samples}
        return means | {PREFIX + name: value for name, value in some.items()}

    def _batches(self) -> list[tuple[Batch, bool]] | None:
        """Microbatches of this rank, and whether each counts: the last ones may be another rank's. None where a rank
        cannot read its own, which must not end a training: the next time it is tried again.

        Read once and kept. Collective until then.
        """
        if self._read is None:
            assert self._dataset is not None
            count, size = self.config.validation.loss_samples, self.config.microbatch_size
            slots = [range(first, min(first + size, count)) for first in range(0, count, size)]
            rounds = -(-len(slots) // self._world)
            mine = [turn * self._world + self._rank for turn in range(rounds)]
            found: list[tuple[Batch, bool]] = []
            try:
                for number in mine:
                    items = [self._dataset[slot] for slot in slots[number % len(slots)]]
                    found.append((collate(items), number < len(slots)))
            except (ValueError, EOFError, OSError) as error:
                found = []
                log.warning("the loss on held-out clips is not measured this time: %s", error)
            if any(over_ranks(torch.tensor([float(not found)], device=self.device))):
                return None
            self._read = found
            self._total = self._totals([batch for batch, counts in self._read if counts])
        return self._read

    def _totals(self, batches: list[Batch]) -> Totals:
        # Sums that a loss divides by, over the samples that are measured instead of those of a step.
        size = self.config.validation.loss_samples
        assert self._read is not None
        counted = [self.task.counts(batch, seed=self.seed, step=0) for batch in batches]
        names = list(self.task.counts(self._read[0][0], seed=self.seed, step=0))
        sums = [float(sum(part[name].double().sum() for part in counted)) for name in names]
        totals = over_ranks(torch.tensor(sums, dtype=torch.float64, device=self.device)) if names else []
        return {"samples": float(size), **dict(zip(names, totals, strict=True))}

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Context in which the networks are in evaluation mode, and after which all is as it was."""
        learners = [learner for learner in (self.learner, self.critic) if learner is not None]
        devices: list[Any] = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            try:
                for learner in learners:
                    learner.module.eval()
                yield
            finally:
                for learner in learners:
                    learner.module.train()
                    learner.statistics.drop()
                    reshard(learner.module)
