"""Losses and gradients that are not finite: the step is skipped and its samples are named; too many end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from train.config import GuardConfig
from train.task import Batch

log = logging.getLogger(__name__)


class NotFinite(ValueError):
    """Too many skipped steps in a row."""


@dataclass
class SkipGuard:
    """Counts skipped steps.

    Attributes:
        total: Skipped since step 0.
        in_a_row: Skipped since the last step that was not.
    """

    config: GuardConfig
    total: int = 0
    in_a_row: int = 0

    def passed(self) -> None:
        """A step was fine."""
        self.in_a_row = 0

    def skipped(self, step: int, what: str, keys: Sequence[str]) -> None:
        """A step was skipped.

        Args:
            step: From 1, as in `metrics.jsonl`.
            what: "loss" or "gradient".
            keys: The samples it came from.

        Raises:
            NotFinite: It was the last straw.
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
    """Samples whose own loss `[B]` is not finite."""
    return [
        key
        for batch, loss in zip(batches, losses, strict=True)
        for key, good in zip(batch["keys"], loss.isfinite().tolist(), strict=True)
        if not good
    ]


def keys_of_bad_gradient(
    batches: Iterable[Batch], backward: Callable[[Batch], Any], parameters: Sequence[nn.Parameter]
) -> list[str]:
    """Samples whose own gradient is not finite, found by going through them one by one.

    Ranks may call it together when `backward` communicates: they have equally many samples. A gradient that is shared
    then names the samples of all of them.

    Args:
        batches: Microbatches of a step.
        backward: Adds a batch's gradient to the parameters'.
        parameters: The trained ones; their gradients are gone afterwards.
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
    """One sample of a batch of B, as a batch of 1: tensors `[B, …]` and lists of B are cut, the rest stays."""
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
