"""The optimizer over the trainable parameters, and its learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from train.config import OptimizerConfig, ScheduleConfig


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter that training changes.

    Raises:
        ValueError: There is none.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("nothing to train: every parameter of the module is frozen; look at the task's settings")
    return trainable


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over what is not frozen, with its state in place.

    Weight decay holds for matrices and kernels only: pulling biases and gains of norms towards 0 regularises nothing.
    The state exists from the start rather than from the first step, so that a checkpoint has the same tensors at any
    time, and memory that does not suffice shows at once.
    """
    decayed, others = [], []
    for parameter in trainable_parameters(module).values():
        (decayed if parameter.ndim >= 2 else others).append(parameter)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    optimizer = kind(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    _make_state(optimizer)
    return optimizer


def learning_rate(step: int, steps: int, config: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of an update.

    Rises in a line over `warmup_steps`, then stays, or falls in a line or half a cosine to `final` times the full rate.
    A rate that falls rises over half of the steps at most: a recipe that is cut short for a trial still ends at
    `final`.

    Args:
        step: Number of the update, from 0.
        steps: Updates in all; the last one, `steps - 1`, has the final rate.
        config: The full rate.
        schedule: The course.
    """
    falls = schedule.name != "constant"
    warmup = min(schedule.warmup_steps, steps // 2) if falls else schedule.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if not falls:
        return config.learning_rate
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    fall = progress if schedule.name == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return config.learning_rate * (1 - (1 - schedule.final) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(parameters: Iterable[nn.Parameter], norm: float, limit: float | None) -> None:
    """Scale a gradient down to an L2 norm.

    Args:
        parameters: Hold the gradient.
        norm: Its L2 norm.
        limit: The largest allowed; None: any.
    """
    if limit is not None and norm > limit:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)  # pyright: ignore


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """An update by zero (gradients and rate are 0) that does not count."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].zero_()
    optimizer.zero_grad(set_to_none=True)
