"""Gradient of a step, added up microbatch by microbatch, and the samples of one that is not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from talkinghead.rng import key_bits
from train.config import GuardConfig, TrainConfig
from train.task import Batch, Losses, Task
from train.trainer.parallel import autocast, gather_lists, gradient_sync

log = logging.getLogger(__name__)


class Backward:
    """Forward and backward pass of one rank.

    Args:
        task: Task that computes the losses.
        module: Module as wrapped for the ranks.
        config: Batch sizes, precision and seed.
        device: Device of the module.
        world: Number of ranks.
    """

    def __init__(self, task: Task, module: nn.Module, config: TrainConfig, device: torch.device, world: int) -> None:
        self.task, self.module, self.config, self.device = task, module, config, device
        # DDP and FSDP2 average the gradients of the ranks, where the sum is wanted: the factor `world` makes up for it.
        self._scale = world / config.global_batch

    def __call__(self, batch: Batch, step: int, *, sync: bool) -> Losses:
        """Add the gradient of (sum of the samples' losses) / global batch.

        Args:
            batch: Microbatch, on the CPU.
            step: Number of the step, from 0. With the first slot it is the key of dropout and whatever else the module
                draws from PyTorch's global generator.
            sync: Whether to exchange the gradients of this and all earlier microbatches of the step.

        Returns:
            Losses, `[B]` each.
        """
        # Seed the global generator for dropout, so that its masks depend on nothing that ran before. A seed must fit 64
        # bits.
        torch.manual_seed(key_bits(self.config.seed, "dropout", step, int(batch["slot"][0])) >> 65)
        batch = {name: v.to(self.device, non_blocking=True) if torch.is_tensor(v) else v for name, v in batch.items()}
        # The backward pass must lie within, too: that is where gradients are exchanged.
        with gradient_sync(self.module, sync):
            with autocast(self.config.parallel, self.device):
                losses = self.task.loss(self.module, batch, seed=self.config.seed)
            assert losses["loss"].shape == (len(batch["keys"]),), "a task's loss is each sample's for itself"
            # Outside autocast, as PyTorch asks: backward uses the precision that the forward pass chose for each
            # operation.
            (losses["loss"].sum() * self._scale).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def bad_samples(
        self, what: str, step: int, batches: list[Batch], losses: list[Losses], parameters: Sequence[nn.Parameter]
    ) -> list[str]:
        """Keys of the samples, on any rank, that made a step's loss or gradient infinite or NaN. Collective.

        Args:
            what: "loss", or "gradient" if all losses were finite.
            step: Number of the step, from 0.
            batches: Microbatches of this rank.
            losses: Losses of each microbatch.
            parameters: Trained parameters; their gradients are gone afterwards.
        """
        # A bad loss shows in the numbers at hand. A bad gradient needs a backward pass for each sample, which is rare
        # enough.
        if what == "loss":
            keys = keys_of_bad_loss(batches, [part["loss"] for part in losses])
        else:
            sharded = isinstance(self.module, FSDPModule)  # its gradients exist only when they are exchanged
            keys = keys_of_bad_gradient(batches, lambda batch: self(batch, step, sync=sharded), parameters)
        # Each may be finite on its own and their sum not; then all samples of the step are named.
        keys = gather_lists(keys) or gather_lists([key for batch in batches for key in batch["keys"]])
        return list(dict.fromkeys(keys))


# --- what is not finite -----------------------------------------------------------------------------------------------


class NotFinite(ValueError):
    """Too many skipped steps in a row."""


@dataclass
class SkipGuard:
    """Counter of skipped steps, which ends a training that makes no progress.

    Attributes:
        total: Number of steps skipped since step 0.
        in_a_row: Number of steps skipped since the last one that was not.
    """

    config: GuardConfig
    total: int = 0
    in_a_row: int = 0

    def passed(self) -> None:
        """Note a step that was fine."""
        self.in_a_row = 0

    def skipped(self, step: int, what: str, keys: Sequence[str]) -> None:
        """Note a skipped step.

        Args:
            step: Number of the step, from 1 as in `metrics.jsonl`.
            what: "loss" or "gradient".
            keys: Samples that it came from.

        Raises:
            NotFinite: As many steps in a row as `GuardConfig.abort_after` allows were skipped.
        """
        self.total += 1
        self.in_a_row += 1
        log.warning("step %d skipped: the %s of %s is not finite", step, what, ", ".join(keys))
        if self.in_a_row >= self.config.abort_after:
            raise NotFinite(
                f"{self.in_a_row} steps in a row, up to step {step}, were skipped because loss or gradient was not"
                f" finite, the last at {', '.join(keys)}: look at these samples, or take a lower"
                " learning rate in another RUN"
            )


def keys_of_bad_loss(batches: Iterable[Batch], losses: Iterable[torch.Tensor]) -> list[str]:
    """Keys of the samples whose own loss is not finite; `losses` are `[B]` for each batch."""
    return [
        key
        for batch, loss in zip(batches, losses, strict=True)
        for key, good in zip(batch["keys"], loss.isfinite().tolist(), strict=True)
        if not good
    ]


def keys_of_bad_gradient(
    batches: Iterable[Batch], backward: Callable[[Batch], Any], parameters: Sequence[nn.Parameter]
) -> list[str]:
    """Keys of the samples whose own gradient is not finite, found by going through them one by one.

    Ranks may call it together when `backward` communicates: they have equally many samples. Where the gradient is
    exchanged, each rank names its own sample of that turn, although only one of them may be to blame.

    Args:
        batches: Microbatches of a step.
        backward: Adds the gradient of a batch to that of the parameters.
        parameters: Trained parameters; their gradients are gone afterwards.
    """
    keys = []
    for batch in batches:
        for index, key in enumerate(batch["keys"]):
            _drop_gradients(parameters)
            backward(only(batch, index))
            if not all(_local(p.grad).isfinite().all() for p in parameters if p.grad is not None):
                keys.append(key)
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


def _local(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
