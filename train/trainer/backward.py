"""The gradient of a step, added up microbatch by microbatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from talkinghead.rng import key_bits
from train.config import TrainConfig
from train.task import Batch, Losses, Task
from train.trainer.guards import keys_of_bad_gradient, keys_of_bad_loss
from train.trainer.parallel import autocast, gather_lists, gradient_sync


class Backward:
    """Forward and backward of one rank.

    Args:
        task: Its loss.
        module: As wrapped for the ranks.
        config: Batch sizes, precision and seed.
        device: Of the module.
        world: Number of ranks.
    """

    def __init__(self, task: Task, module: nn.Module, config: TrainConfig, device: torch.device, world: int) -> None:
        self.task, self.module, self.config, self.device = task, module, config, device
        # Ranks' gradients are averaged: each counts for 1 / world of what it says here.
        self._scale = world / config.global_batch

    def __call__(self, batch: Batch, step: int, *, sync: bool) -> Losses:
        """Add the gradient of (sum of the samples' losses) / global batch.

        Args:
            batch: On the CPU.
            step: From 0. With the first slot it is the key of dropout and whatever else the module draws from torch's
                global generator.
            sync: Exchange the gradients of this and all earlier microbatches of the step.

        Returns:
            Losses `[B]`.
        """
        torch.manual_seed(key_bits(self.config.seed, "dropout", step, int(batch["slot"][0])) >> 65)
        batch = {name: v.to(self.device, non_blocking=True) if torch.is_tensor(v) else v for name, v in batch.items()}
        with gradient_sync(self.module, sync):
            with autocast(self.config.parallel, self.device):
                losses = self.task.loss(self.module, batch, seed=self.config.seed)
            assert losses["loss"].shape == (len(batch["keys"]),), "a task's loss is each sample's for itself"
            (losses["loss"].sum() * self._scale).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def bad_samples(
        self, what: str, step: int, batches: list[Batch], losses: list[Losses], parameters: Sequence[nn.Parameter]
    ) -> list[str]:
        """Keys of the samples, of all ranks, that made a step's loss or gradient infinite or NaN. Collective.

        Args:
            what: "loss", or "gradient" if all losses were finite.
            step: From 0.
            batches: The microbatches of this rank.
            losses: Of each.
            parameters: The trained ones; their gradients are gone afterwards.
        """
        if what == "loss":
            keys = keys_of_bad_loss(batches, [part["loss"] for part in losses])
        else:
            sharded = isinstance(self.module, FSDPModule)  # its gradients exist only when they are exchanged
            keys = keys_of_bad_gradient(batches, lambda batch: self(batch, step, sync=sharded), parameters)
        # Each alone may be finite and their sum not; then all are named.
        keys = gather_lists(keys) or gather_lists([key for batch in batches for key in batch["keys"]])
        return list(dict.fromkeys(keys))
