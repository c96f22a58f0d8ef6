"""Network in training: its trained parameters in groups, their optimizer, and the buffers that follow the training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from talkinghead.models.running_statistics import RunningStatistics
from train.config import OptimizerConfig, ParameterGroup, ScheduleConfig
from train.trainer.eight_bit_adam import adamw8bit
from train.trainer.parallel import bare, gradient_norm, local

COMMON = "gradient_norm"
"""Name of the norm of all gradients that no group limits by itself."""


class Learner:
    """A network that learns: the module of a task, or its critic.

    Make it after the wrapping for the ranks: sharding replaces the parameters.

    Args:
        module: Module as wrapped for the ranks.
        optimizer: Settings of the optimizer.
        schedule: Course of the learning rate.
        steps: Total number of steps of the training.
        groups: Parameters that are trained otherwise; the first that matches counts.

    Attributes:
        parameters: Trained parameters by name.
        device: Where they lie.

    Raises:
        ValueError: All parameters are frozen, or a group has none or is over before it begins.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        steps: int,
        groups: Sequence[ParameterGroup] = (),
    ) -> None:
        self.module, self.config, self.steps = module, optimizer, steps
        self.parameters = trainable_parameters(bare(module))
        self.device = next(iter(self.parameters.values())).device
        self.statistics = RunningStatistics(bare(module))
        # The rest, last, is a group of its own that has the recipe's settings.
        everything_else = ParameterGroup(match="", schedule=schedule)
        self.groups = (*groups, everything_else)
        self._members = _members(self.parameters, self.groups, steps)
        self._schedules = [group.schedule or schedule for group in self.groups]
        self.optimizer = self._make_optimizer()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Adam or AdamW with its state in place.

        Weight decay applies to matrices and kernels only: pulling biases and gains of norms towards 0 regularises
        nothing. The state exists from the start rather than from the first step, so that a checkpoint has the same
        tensors at any time, and memory that does not suffice shows at once.
        """
        config, settings = self.config, []
        for number, (group, members) in enumerate(zip(self.groups, self._members, strict=True)):
            own = {
                "group": number,
                "betas": group.betas or config.betas,
                "eps": config.eps if group.eps is None else group.eps,
            }
            decay = config.weight_decay if group.weight_decay is None else group.weight_decay
            # Biases and gains have one dimension, matrices and kernels more.
            parameters = [self.parameters[name] for name in members]
            settings.append(own | {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay})
            settings.append(own | {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0})
        if config.name == "adamw8bit":
            return adamw8bit(one for one in settings if one["params"])
        kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        # The rate is set before each update; `_make_state` relies on 0.
        optimizer = kind([one for one in settings if one["params"]], lr=0.0, fused=True)
        _make_state(optimizer)
        return optimizer

    def active(self, step: int) -> dict[str, nn.Parameter]:
        """Parameters that step `step`, from 0, moves."""
        names = [
            name
            for group, members in zip(self.groups, self._members, strict=True)
            if _runs(group, step)
            for name in members
        ]
        return {name: self.parameters[name] for name in names}

    def norms(self, step: int) -> dict[str, Tensor]:
        """L2 norms of the gradients that step `step` has: the common one, and one of each group that has a limit.

        Scalars on the device, equal on every rank. Collective where gradients are sharded.
        """
        common = self._of(step, None)
        # Where all parameters are in groups with limits of their own, nothing is left.
        found = {COMMON: gradient_norm(common) if common else torch.zeros((), device=self.device)}
        for number, group in enumerate(self.groups):
            if group.max_gradient_norm is not None and _runs(group, step):
                found[f"{COMMON}/{group.match}"] = gradient_norm(self._of(step, number))
        return found

    @torch.no_grad()
    def update(self, norms: dict[str, Tensor], step: int, passed: Tensor) -> None:
        """Move the weights by the gradients of a step, then, once, the buffers that follow it. Collective.

        In a skipped step weights, moments, counts of updates and buffers keep their bits, and nothing waits for the
        device to know which it is.

        Args:
            norms: What `norms` gave; all finite, unless the step is skipped.
            step: Number of the step, from 0.
            passed: Whether it is not skipped, a bool scalar on the device.
        """
        _scale_down(self._of(step, None), norms[COMMON], self.config.max_gradient_norm)
        for number, group in enumerate(self.groups):
            if group.max_gradient_norm is not None and _runs(group, step):
                _scale_down(self._of(step, number), norms[f"{COMMON}/{group.match}"], group.max_gradient_norm)
        # The optimizer passes over parameters without a gradient: their weights and moments stand still.
        active = self.active(step)
        for name, parameter in self.parameters.items():
            if name not in active:
                parameter.grad = None
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.learning_rate(step, settings["group"])
        # The fused optimizers look at this on the device, as loss scaling for float16 has it: 1 means that a gradient
        # is not finite, and that nothing is to be moved.
        self.optimizer.found_inf = (~passed).float()  # pyright: ignore
        self.optimizer.step()
        self.statistics.move(passed)

    def check_gradients(self, what: str, whose: str) -> None:
        """Raise `ValueError` where a parameter has got no gradient.

        Args:
            what: Beginning of the message, before the names of those.
            whose: Who must freeze them.
        """
        if idle := [name for name, parameter in self.parameters.items() if parameter.grad is None]:
            raise ValueError(f"{what} {', '.join(idle)}: {whose} must freeze what it does not train")

    def drop(self) -> None:
        """Forget gradients, and what the forward passes have noted."""
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.drop()

    def learning_rate(self, step: int, group: int = -1) -> float:
        """Learning rate of an update, from 0, of a group; without a number that of the recipe."""
        rate = learning_rate(step, self.steps, self.config, self._schedules[group])
        return rate * self.groups[group].rate

    def _of(self, step: int, number: int | None) -> list[nn.Parameter]:
        """Parameters of a group, or those whose norms are limited in common (None), that a step moves."""
        return [
            self.parameters[name]
            for at, (group, members) in enumerate(zip(self.groups, self._members, strict=True))
            if _runs(group, step) and (at == number if number is not None else group.max_gradient_norm is None)
            for name in members
        ]


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name.

    Raises:
        ValueError: All parameters are frozen.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("nothing to train: every parameter of the module is frozen; look at the task's settings")
    return trainable


def learning_rate(step: int, steps: int, config: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of an update.

    It rises linearly over `warmup_steps`, then stays, or falls linearly or along half a cosine to `final` times the
    full rate, or by a factor after every so many steps. If it falls to the last step, the warm-up takes at most half of
    all steps: a recipe that is cut short for a trial still ends at `final`.

    Args:
        step: Number of the update, from 0.
        steps: Total number of updates; the last one, `steps - 1`, has the final rate.
        config: Settings with the full rate.
        schedule: Course of the rate over the steps.
    """
    falls = schedule.name in ("cosine", "linear")
    warmup = min(schedule.warmup_steps, steps // 2) if falls else schedule.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if schedule.name == "exponential":
        share = schedule.factor ** ((step - warmup) // schedule.every)
        return config.learning_rate * max(schedule.final, share)
    if not falls:
        return config.learning_rate
    # 0 at the first update after the warm-up, 1 at the last update of all.
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    fall = progress if schedule.name == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return config.learning_rate * (1 - (1 - schedule.final) * fall)


def _members(
    parameters: dict[str, nn.Parameter], groups: Sequence[ParameterGroup], steps: int
) -> list[tuple[str, ...]]:
    """Names of the parameters of each group; the last one takes what is left."""
    found: list[list[str]] = [[] for _ in groups]
    for name in parameters:
        number = next(number for number, group in enumerate(groups) if re.search(group.match, name))
        found[number].append(name)
    for group, members in zip(groups[:-1], found, strict=False):
        if not members:
            raise ValueError(
                f"the group of parameters {group.match!r} has none: nothing that is trained has such a name, or an"
                " earlier group has taken it"
            )
        if group.first >= steps:
            raise ValueError(
                f"the group of parameters {group.match!r} would be trained from step {group.first} on, and the training"
                f" has {steps} steps: take more steps, or an earlier first"
            )
    return [tuple(members) for members in found]


def _runs(group: ParameterGroup, step: int) -> bool:
    return group.first <= step and (group.last is None or step <= group.last)


def _scale_down(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float | None) -> None:
    """Scale a gradient with an L2 norm down to a limit, in place; None: any norm stays."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if limit is None or not gradients:
        return
    # In float64, as Python would divide. A factor of 1 changes no bit.
    norm = norm.double()
    factor = torch.where(norm > limit, torch.full_like(norm, limit) / norm, 1.0)
    torch._foreach_mul_(gradients, factor.float())  # pyright: ignore


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
