"""Update of a step: clipping, learning rate, optimizer, and the moving average that is validated and exported."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn

from train.config import EmaConfig, OptimizerConfig, ScheduleConfig
from train.trainer.parallel import bare, full


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name.

    Raises:
        ValueError: All parameters are frozen.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("nothing to train: every parameter of the module is frozen; look at the task's settings")
    return trainable


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, with its state in place.

    Weight decay applies to matrices and kernels only: pulling biases and gains of norms towards 0 regularises nothing.
    The state exists from the start rather than from the first step, so that a checkpoint has the same tensors at any
    time, and memory that does not suffice shows at once.
    """
    # Biases and gains have one dimension, matrices and kernels more.
    decayed, others = [], []
    for parameter in trainable_parameters(module).values():
        (decayed if parameter.ndim >= 2 else others).append(parameter)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    optimizer = kind(
        [group for group in groups if group["params"]],
        lr=0.0,  # set before each update; `_make_state` relies on 0
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    _make_state(optimizer)
    return optimizer


def learning_rate(step: int, steps: int, config: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of an update.

    It rises linearly over `warmup_steps`, then stays, or falls linearly or along half a cosine to `final` times the
    full rate. If it falls, the warm-up takes at most half of all steps: a recipe that is cut short for a trial still
    ends at `final`.

    Args:
        step: Number of the update, from 0.
        steps: Total number of updates; the last one, `steps - 1`, has the final rate.
        config: Settings with the full rate.
        schedule: Course of the rate over the steps.
    """
    falls = schedule.name != "constant"
    warmup = min(schedule.warmup_steps, steps // 2) if falls else schedule.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if not falls:
        return config.learning_rate
    # 0 at the first update after the warm-up, 1 at the last update of all.
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    fall = progress if schedule.name == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return config.learning_rate * (1 - (1 - schedule.final) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(parameters: Iterable[nn.Parameter], norm: float, limit: float | None) -> None:
    """Scale a gradient down to an L2 norm, in place.

    Args:
        parameters: Parameters with the gradient.
        norm: L2 norm of the gradient.
        limit: Largest norm that stays; None: any.
    """
    if limit is not None and norm > limit:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)  # pyright: ignore


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the moments by an update of zero (gradients and rate are 0), and set its count of updates back."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Adam corrects its moments by the number of updates: this one must not count.
    for state in optimizer.state.values():
        state["step"].zero_()
    optimizer.zero_grad(set_to_none=True)


# --- the average of the weights ---------------------------------------------------------------------------------------


class Ema:
    """Moving average of the weights: average ← decay · average + (1 - decay) · weights, after every update.

    With decay 0 the average is the weights themselves, and no copy is kept.

    Args:
        parameters: Trainable parameters by name, on any device; shards stay shards.
        config: Settings with the decay.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: EmaConfig) -> None:
        self.config = config
        self._parameters = parameters
        # Without a decay a copy would only take memory; `average` then reads the parameters.
        self._copies = {name: p.detach().clone() for name, p in parameters.items()} if config.decay else None

    @property
    def average(self) -> dict[str, torch.Tensor]:
        """Averages by name: float32, with the shape, device and sharding of the parameter."""
        if self._copies is not None:
            return self._copies
        # Made anew at each call: sharding may move a parameter to other memory.
        return {name: p.detach() for name, p in self._parameters.items()}

    def decay(self, step: int) -> float:
        """Decay at update `step`, counted from 0; the warm-up is TensorFlow's (1 + step) / (10 + step)."""
        return min(self.config.decay, (1 + step) / (10 + step)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights that update `step` made."""
        if self._copies is None:
            return
        averages, weights = list(self._copies.values()), list(self._parameters.values())
        torch._foreach_lerp_(averages, weights, 1 - self.decay(step))  # pyright: ignore


class Exporter:
    """Source of the module that is exported and validated.

    Make it before the module is moved and wrapped. It keeps a copy in memory, since the files of the first weights may
    be gone by the time of an export.

    Args:
        built: Module that `Task.build` returned.
        rank: Number of this process; rank 0 keeps the copy.
    """

    def __init__(self, built: nn.Module, rank: int) -> None:
        self._copy = copy.deepcopy(built).eval() if rank == 0 else None

    @torch.no_grad()
    def gather(self, module: nn.Module, ema: Ema) -> nn.Module | None:
        """Module on the CPU with frozen parameters as built, buffers as trained, and the averages; None but on rank 0.

        Collective. Each call returns the same module with newer values.

        Args:
            module: Module in training, as wrapped for the ranks.
            ema: Averages of its parameters.
        """
        target = {} if self._copy is None else self._copy.state_dict(keep_vars=True)
        for name, average in ema.average.items():
            # Every rank takes part in gathering a sharded tensor, one at a time so that no rank holds the whole model.
            whole = full(average)
            if self._copy is not None:
                target[name].copy_(whole)
        for name, buffer in bare(module).named_buffers():
            if name in target:  # else it is one that is not saved
                target[name].copy_(buffer)
        return self._copy
