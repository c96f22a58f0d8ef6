"""Gradients of a step, added up microbatch by microbatch, and the samples of one that is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from talkinghead.rng import key_bits
from train.config import TrainConfig
from train.task import Adversary, Batch, Losses, PartialFigures, Step, Task, Totals
from train.trainer.learner import Learner
from train.trainer.parallel import autocast, bare, gather_lists, gather_rows, gradient_sync, is_alone, local, over_ranks
from train.trainer.precision import draws_masks
from train.trainer.throughput import Throughput
from train.trainer.transfer import Ahead

Made = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Samples of a step on one rank, and what it must know of those of all ranks."""

    batches: list[Batch]
    """Microbatches of this rank, on the CPU."""
    sizes: tuple[int, ...]
    """Number of samples of each rank."""
    total: Totals
    """Sums over all samples."""

    @property
    def samples(self) -> float:
        """Number of samples of all ranks."""
        return self.total["samples"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the module's turn of a step has given, without graphs."""

    losses: list[Losses]
    """Losses `[B]` of each microbatch of this rank."""
    made: list[Made]
    """What the critic judges of each."""
    terms: dict[str, Tensor]
    """Terms over the whole global batch, scalars, the same on every rank."""
    figures: list[PartialFigures] = field(default_factory=list)
    """Figures of some of the samples of each microbatch."""


class Backward:
    """Forward and backward passes of one rank: the module's turn, then, where there is one, the critic's.

    Args:
        task: Task that computes the losses.
        learner: Module in training.
        config: Batch sizes, precision and seed.
        device: Device of the module.
        rank: Number of this process.
        world: Number of ranks.
        clock: Clock of the steps.
        adversary: Adversary of the task.
        critic: Its critic in training.
    """

    def __init__(
        self,
        task: Task,
        learner: Learner,
        config: TrainConfig,
        device: torch.device,
        rank: int,
        world: int,
        clock: Throughput,
        adversary: Adversary | None = None,
        critic: Learner | None = None,
    ) -> None:
        self.task, self.learner, self.config, self.device = task, learner, config, device
        self.rank, self.world = rank, world
        self.adversary, self.critic, self.clock = adversary, critic, clock
        self.module = learner.module
        self.ahead = Ahead(device, clock)
        self._has_terms = False
        # Whether a network draws from the generator of the device; one that draws nothing needs no seed, and each seed
        # is an obstacle to CUDA graphs.
        self._module_draws = draws_masks(bare(self.module))
        self._critic_draws = critic is not None and draws_masks(bare(critic.module))

    def gathered(self, batches: list[Batch], step: int) -> StepBatch:
        """Batch of a step. Collective where the task or its adversary counts, or where microbatches have unequal
        numbers of samples: the hosts exchange these, and no device is waited for.

        Args:
            batches: Microbatches of this rank, on the CPU.
            step: Number of the step, from 0.
        """
        self.ahead.start(batches[0])
        counted = [self.task.counts(batch, seed=self.config.seed, step=step) for batch in batches]
        if self.adversary is not None:
            counted = [
                own | {f"critic/{name}": value for name, value in self.adversary.counts(batch).items()}
                for own, batch in zip(counted, batches, strict=True)
            ]
        if not counted[0] and self.config.microbatch_seconds is None:
            own = self.config.microbatch_size * len(batches)
            total = {"samples": float(own * self.world)}
            return StepBatch(batches=batches, sizes=(own,) * self.world, total=total)
        names = list(counted[0])
        sizes = [0.0] * self.world
        sizes[self.rank] = float(sum(len(batch["keys"]) for batch in batches))
        sums = [float(sum(part[name].double().sum() for part in counted)) for name in names]
        # A tensor of the CPU, which travels from host to host.
        with self.clock.waiting("all_reduce"):
            shared = over_ranks(torch.tensor([*sizes, *sums], dtype=torch.float64))
        sizes, sums = shared[: self.world], shared[self.world :]
        total = {"samples": sum(sizes), **dict(zip(names, sums, strict=True))}
        return StepBatch(batches=batches, sizes=tuple(map(int, sizes)), total=total)

    # --- the module's turn --------------------------------------------------------------------------------------------

    def module_turn(self, batch: StepBatch, step: int) -> Turn:
        """Add the gradient of (sum of the samples' losses) / (samples of the step), and of the batch terms.

        The first call of a training must be with one microbatch: it tells whether there are batch terms.

        Args:
            batch: Batch of the step.
            step: Number of the step, from 0.
        """
        batches, total = batch.batches, batch.total
        with self._critic_frozen():
            # Terms over the whole batch need the rows of all samples before the first backward pass. With several
            # microbatches the graph of all of them would take too much memory: they are computed twice.
            early: Step | None = None
            rows: list[dict[str, Tensor]] = []
            if len(batches) == 1:
                early = self._forward(batches[0], step, total, sync=True)
                rows = [early.rows]
                self._has_terms = bool(early.rows)
            elif self._has_terms:
                with torch.no_grad():
                    rows = [self._forward(one, step, total, sync=False).rows for one in self.ahead.in_turn(batches)]
                self.learner.statistics.drop()
            slopes: list[dict[str, Tensor]] = [{} for _ in batches]
            terms: dict[str, Tensor] = {}
            if self._has_terms:
                slopes, terms = self._batch_terms(batch, rows, step)
            # One backward pass for each microbatch; gradients are exchanged in the last one.
            losses: list[Losses] = []
            made: list[Made] = []
            figures: list[PartialFigures] = []
            for index, one in enumerate(batches if early else self.ahead.in_turn(batches)):
                last = index == len(batches) - 1
                result = self._backward(one, step, total, sync=last, slopes=slopes[index], early=early)
                self.learner.statistics.note()
                losses.append({name: loss.detach() for name, loss in result.losses.items()})
                made.append({name: value.detach() for name, value in result.made.items()})
                figures.append({name: (value.detach(), mask) for name, (value, mask) in result.figures.items()})
        return Turn(losses=losses, made=made, terms=terms, figures=figures)

    def _forward(self, batch: Batch, step: int, total: Totals, *, sync: bool) -> Step:
        if self._module_draws:
            self._seed_dropout("dropout", step, batch)
        batch = self.ahead.take(batch)
        critic = bare(self.critic.module) if self.critic else None
        with gradient_sync(self.module, sync, self.config.parallel), autocast(self.config.parallel, self.device):
            result = self.task.loss(self.module, batch, seed=self.config.seed, step=step, total=total, critic=critic)
        assert result.losses["loss"].shape == (len(batch["keys"]),), "a task's loss is each sample's for itself"
        return result

    def _backward(
        self,
        batch: Batch,
        step: int,
        total: Totals,
        *,
        sync: bool,
        slopes: Mapping[str, Tensor] | None = None,
        early: Step | None = None,
    ) -> Step:
        """Forward pass, unless it is done already, and backward pass of a microbatch."""
        # DDP and FSDP2 average the gradients of the ranks, where the sum is wanted: the factor `world` makes up for it.
        # The backward pass must lie within `gradient_sync`, too: that is where gradients are exchanged.
        with gradient_sync(self.module, sync, self.config.parallel):
            result = early or self._forward(batch, step, total, sync=sync)
            objective = result.losses["loss"].sum() * (self.world / total["samples"])
            for name, along in (slopes or {}).items():
                objective = objective + self.world * (along * result.rows[name]).sum()
            # Outside autocast, as PyTorch asks: backward uses the precision that the forward pass chose for each
            # operation.
            self.clock.backward(objective, exchanges=sync and self.world > 1)
        return result

    @contextlib.contextmanager
    def _critic_frozen(self) -> Iterator[None]:
        """Context in which the critic judges without learning: neither its parameters nor its buffers."""
        parameters = list(self.critic.parameters.values()) if self.critic else []
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
            if self.critic:
                self.critic.statistics.drop()

    def _batch_terms(
        self, batch: StepBatch, rows: Sequence[Mapping[str, Tensor]], step: int
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Slopes of the batch terms along the rows of each microbatch of this rank, and the terms. Collective."""
        own = {name: torch.cat([part[name].detach().float() for part in rows]) for name in rows[0]}
        slots = [one["slot"] for one in batch.batches]
        numbers = torch.cat([slot.to(self.device, non_blocking=True) for slot in slots])
        # Every rank puts the rows of all ranks in the order of their slots, and takes the slopes along its own.
        everyones = gather_rows(numbers, batch.sizes)
        order = everyones.argsort()
        whole = {name: gather_rows(values, batch.sizes)[order].requires_grad_(True) for name, values in own.items()}
        with torch.enable_grad():
            figures = self.task.batch_terms(whole, seed=self.config.seed, step=step)
            names = list(whole)
            found = torch.autograd.grad(figures["loss"], [whole[name] for name in names], materialize_grads=True)
        places = torch.searchsorted(everyones[order], numbers)
        parts = [len(slot) for slot in slots]
        slopes: list[dict[str, Tensor]] = [{} for _ in slots]
        for name, gradient in zip(names, found, strict=True):
            for number, part in enumerate(gradient[places].split(parts)):
                slopes[number][name] = part
        return slopes, {name: value.detach() for name, value in figures.items()}

    # --- the critic's turn --------------------------------------------------------------------------------------------

    def critic_turn(self, batch: StepBatch, made: Sequence[Made], step: int) -> list[Losses]:
        """Add the gradient of the critic's losses to its parameters. Returns its losses `[B]` of each microbatch.

        Args:
            batch: Batch of the step.
            made: What the module made of each microbatch before its update.
            step: Number of the step, from 0.
        """
        losses = []
        for index, (one, judged) in enumerate(zip(self.ahead.in_turn(batch.batches), made, strict=True)):
            last = index == len(batch.batches) - 1
            losses.append(self._critic_backward(one, judged, step, batch.total, sync=last))
            assert self.critic is not None
            self.critic.statistics.note()
        return losses

    def _critic_backward(self, batch: Batch, made: Made, step: int, total: Totals, *, sync: bool) -> Losses:
        assert self.critic is not None and self.adversary is not None
        if self._critic_draws:
            self._seed_dropout("critic dropout", step, batch)
        batch = self.ahead.take(batch)
        module = self.critic.module
        with gradient_sync(module, sync, self.config.parallel):
            with autocast(self.config.parallel, self.device):
                losses = self.adversary.loss(module, batch, made, seed=self.config.seed, step=step, total=total)
            assert losses["loss"].shape == (len(batch["keys"]),), "a critic's loss is each sample's for itself"
            objective = losses["loss"].sum() * (self.world / total["samples"])
            self.clock.backward(objective, exchanges=sync and self.world > 1)
        return {name: loss.detach() for name, loss in losses.items()}

    def _seed_dropout(self, purpose: str, step: int, batch: Batch) -> None:
        """Seed the generator of the device for a microbatch, so that dropout depends on nothing that ran before."""
        gpu = self.device.type == "cuda"
        drawn = torch.cuda.default_generators[self.device.index] if gpu else torch.default_generator
        # A seed must fit 64 bits. The slot lies on the host, and a GPU takes its seed without being waited for.
        drawn.manual_seed(key_bits(self.config.seed, purpose, step, int(batch["slot"][0])) >> 65)

    # --- samples that cannot be learnt from ---------------------------------------------------------------------------

    def bad_samples(
        self,
        faults: Sequence[str],
        step: int,
        batch: StepBatch,
        turn: Turn,
        judged: Sequence[Losses],
    ) -> list[str]:
        """Keys of the samples, on any rank, that made a step's loss or gradient infinite or NaN. Collective.

        Where samples depend on their neighbours, whole microbatches are named. Gradients, and what the forward passes
        have noted, are gone afterwards.

        Args:
            faults: "loss", or "gradient" if all losses were finite; "critic/loss" or "critic/gradient".
            step: Number of the step, from 0.
            batch: Its batch.
            turn: What the module's turn gave.
            judged: Losses of the critic for each microbatch.
        """
        # A bad loss shows in the numbers at hand. A bad gradient needs a backward pass for each sample, which is rare
        # enough. The weights may be those of the next step by then: what is searched for is in the samples.
        batches, total = batch.batches, batch.total
        keys: list[str] = []
        for fault in faults:
            if fault == "loss":
                keys += self._keys_of_bad_loss(batches, turn.losses)
            elif fault == "critic/loss":
                keys += self._keys_of_bad_loss(batches, judged)
            elif fault == "gradient":
                keys += self._keys_of_bad_gradient(batches, step, total)
            else:
                keys += self._keys_of_bad_critic(batches, turn.made, step, total)
        # Each may be finite on its own and their sum not; then all samples of the step are named.
        keys = gather_lists(keys) or gather_lists([key for one in batches for key in one["keys"]])
        return list(dict.fromkeys(keys))

    def _keys_of_bad_loss(self, batches: Sequence[Batch], losses: Sequence[Losses]) -> list[str]:
        bad = [part["loss"] for part in losses]
        return keys_of_bad_loss(batches, bad if self.task.independent else [_spread(loss) for loss in bad])

    def _keys_of_bad_gradient(self, batches: Sequence[Batch], step: int, total: Totals) -> list[str]:
        sharded = isinstance(self.module, FSDPModule)  # its gradients exist only when they are exchanged
        if sharded and is_alone():
            return []
        alone = [only(batch, index) for batch in batches for index in range(len(batch["keys"]))]
        with self._critic_frozen():
            found = keys_of_bad_gradient(
                alone if self.task.independent else batches,
                lambda batch: self._backward(batch, step, total, sync=sharded),
                list(self.learner.parameters.values()),
            )
        self.learner.drop()
        return found

    def _keys_of_bad_critic(
        self, batches: Sequence[Batch], made: Sequence[Made], step: int, total: Totals
    ) -> list[str]:
        assert self.critic is not None
        judged = {id(batch): part for batch, part in zip(batches, made, strict=True)}
        found = keys_of_bad_gradient(
            batches,  # what was made of them is at hand for whole microbatches only
            lambda batch: self._critic_backward(batch, judged[id(batch)], step, total, sync=False),
            list(self.critic.parameters.values()),
        )
        self.critic.drop()
        return found


def _spread(loss: Tensor) -> Tensor:
    """Losses of a microbatch, all of them not finite where one is not."""
    return loss.sum().expand_as(loss)


# --- single samples ---------------------------------------------------------------------------------------------------


def keys_of_bad_loss(batches: Iterable[Batch], losses: Iterable[torch.Tensor]) -> list[str]:
    """Keys of the samples whose own loss is not finite; `losses` are `[B]` for each batch."""
    return [
        key
        for batch, loss in zip(batches, losses, strict=True)
        for key, good in zip(batch["keys"], loss.isfinite().tolist(), strict=True)
        if not good
    ]


def keys_by_loss(batches: Iterable[Batch], losses: Iterable[Losses]) -> list[str]:
    """Keys of all samples of a step, on any rank, those with the largest loss first. Collective."""
    own = torch.cat([part["loss"].detach().float() for part in losses]).tolist()
    found = gather_lists(list(zip(own, (key for batch in batches for key in batch["keys"]), strict=True)))
    return list(dict.fromkeys(key for _, key in sorted(found, key=lambda pair: -pair[0])))


def keys_of_bad_gradient(
    batches: Iterable[Batch], backward: Callable[[Batch], Any], parameters: Sequence[nn.Parameter]
) -> list[str]:
    """Keys of the batches whose own gradient is not finite, found by going through them one by one.

    Ranks may call it together when `backward` communicates: they have equally many. Where the gradient is exchanged,
    each rank names its own batch of that turn, although only one of them may be to blame.

    Args:
        batches: Batches, each of a single sample where samples are independent.
        backward: Adds the gradient of a batch to that of the parameters.
        parameters: Trained parameters; their gradients are gone afterwards.
    """
    keys = []
    for batch in batches:
        _drop_gradients(parameters)
        backward(batch)
        if not all(local(p.grad).isfinite().all() for p in parameters if p.grad is not None):
            keys += batch["keys"]
    _drop_gradients(parameters)
    return keys


def only(batch: Batch, index: int) -> Batch:
    """One sample of a batch, as a batch of 1: tensors `[B, …]` and lists of B are cut, anything else stays."""
    count = len(batch["keys"])

    def cut(value: Any) -> Any:
        per_sample = isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0)
        return value[index : index + 1] if per_sample and len(value) == count else value

    return {name: cut(value) for name, value in batch.items()}


def _drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
