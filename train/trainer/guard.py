"""Guard of the steps: those that must not reach the weights are skipped, and those that stand out are warned of.

The device decides (`RunningMedian.passes`), so that no step waits for the host; the host learns of it later, and says
why by the same numbers (`faults_of`, `excesses`). Every rank has the same sums and norms, and so decides the same. What
decides is in the checkpoints: a resumed run skips the same steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.config import GuardConfig
from train.trainer.figures import CRITIC
from train.trainer.learner import COMMON

log = logging.getLogger(__name__)

_KEPT = 1000
"""Number of values that a checkpoint holds for the medians: the largest window, so that another one may be set."""
_FEWEST = 10
"""Number of values from which on there is a median to compare with."""
_NAMED = 5
"""Number of samples that a warning names; metrics.jsonl names all."""


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
            what: "loss" or "gradient", which is not finite; or what `Excess.text` says.
            keys: Samples that it came from.

        Raises:
            NotFinite: As many steps in a row as `GuardConfig.abort_after` allows were skipped.
        """
        self.total += 1
        self.in_a_row += 1
        text = what if MEDIAN in what else f"{what} not finite"
        log.warning("step %d skipped: %s, in %s", step, text, ", ".join(keys))
        if self.in_a_row >= self.config.abort_after:
            raise NotFinite(
                f"{self.in_a_row} steps in a row, up to step {step}, were skipped ({text}), the last at"
                f" {', '.join(keys)}: look at these samples, or take a lower learning rate in another RUN"
            )


def faults_of(figures: Mapping[str, float], norms: Mapping[str, float], critic_norms: Mapping[str, float]) -> list[str]:
    """What of a step is not finite: "loss" or "gradient", and the same after "critic/"; a gradient only where the loss
    is finite.

    Args:
        figures: Sums of the losses over the samples of the step.
        norms: Norms of the module's gradients.
        critic_norms: Those of the critic's.
    """
    found = []
    for prefix, own in (("", norms), (CRITIC, critic_norms)):
        if not math.isfinite(figures.get(f"{prefix}loss", 0.0)):
            found.append(f"{prefix}loss")
        elif not all(map(math.isfinite, own.values())):
            found.append(f"{prefix}gradient")
    return found


# --- what stands out --------------------------------------------------------------------------------------------------

MEDIAN = "x the running median"
WATCHED = ("loss", COMMON)
"""Figures of a step that are compared with what is usual."""


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Loss or gradient norm of a step, far above what is usual."""

    name: str
    """`loss` or `gradient_norm`."""
    value: float
    times: float
    """Its multiple of the running median."""
    new: bool
    """Whether the step before was not above the same limit: of many such steps in a row only the first is warned of."""

    @property
    def text(self) -> str:
        """What it is."""
        return f"{self.name} {self.value:.4g} is {self.times:.3g} {MEDIAN}"


@dataclass(frozen=True, kw_only=True)
class Usual:
    """Loss and gradient norm of a step, and what is usual for each, on the host."""

    values: Mapping[str, float]
    """Mean loss of the step, and the norm of its gradients: the names of `WATCHED`."""
    medians: Mapping[str, float]
    """Running medians of both; NaN where there are too few values."""
    newest: Mapping[str, float]
    """Both of the newest step that was not skipped."""

    def excesses(self, limit: float | None) -> list[Excess]:
        """What of the step is above a multiple of the running median; nothing without a limit.

        A median of 0 or below says nothing about size: there is no alarm then.
        """
        found = []
        for name, value in self.values.items():
            median = self.medians[name]
            if limit is not None and median > 0 and value > limit * median:
                new = self.newest[name] <= limit * median
                found.append(Excess(name=name, value=value, times=value / median, new=new))
        return found


class RunningMedian:
    """Losses and gradient norms of the newest steps, against which a step is held; on the device.

    Args:
        config: Limits, and the number of steps whose median counts.
        device: Device of the training.
    """

    def __init__(self, config: GuardConfig, device: torch.device | None = None) -> None:
        self.config = config
        # One row for each figure, the newest value last; NaN where there has been no step yet.
        self._values = torch.full((len(WATCHED), _KEPT), math.nan, dtype=torch.float64, device=device)

    def state(self) -> dict[str, Tensor]:
        """Values to keep in a checkpoint; filling them restores the medians."""
        return {"values": self._values}

    def medians(self) -> Tensor:
        """Running median of each figure, `[2]` float64; NaN where there are too few values."""
        # What is NaN comes last in the order. Of an even number of values the median is the lower one in the middle.
        ordered = self._values[:, -self.config.window :].sort(dim=1).values
        counts = ordered.isfinite().sum(dim=1, keepdim=True)
        middle = ordered.gather(1, ((counts - 1) // 2).clamp(min=0))
        return middle.masked_fill(counts < _FEWEST, math.nan).flatten()

    def newest(self) -> Tensor:
        """Figures of the newest step that was not skipped, `[2]` float64."""
        return self._values[:, -1]

    def passes(self, values: Tensor, medians: Tensor, decisive: Sequence[Tensor]) -> Tensor:
        """Whether a step may reach the weights, a bool scalar on the device.

        Args:
            values: Mean loss of the step and norm of its gradients, `[2]` float64.
            medians: What `medians` gave.
            decisive: Losses and norms, scalars, each of which must be finite.
        """
        passed = torch.stack([value.double() for value in decisive]).isfinite().all()
        if (limit := self.config.skip_above) is not None:
            passed = passed & ~((medians > 0) & (values > limit * medians)).any()
        return passed

    @torch.no_grad()
    def add(self, values: Tensor, passed: Tensor) -> None:
        """Note a step, unless it was skipped.

        Args:
            values: Its figures, `[2]` float64.
            passed: Whether it was not skipped, a bool scalar.
        """
        moved = torch.cat([self._values[:, 1:], values[:, None]], dim=1)
        # In place: a checkpoint is filled into this tensor.
        self._values.copy_(torch.where(passed, moved, self._values))


def reason(excesses: Sequence[Excess]) -> str:
    """What stands out, for people and `metrics.jsonl`."""
    return " and ".join(excess.text for excess in excesses)


def warn(step: int, excesses: Sequence[Excess], keys: Sequence[str]) -> None:
    """Log a step that stands out.

    Args:
        step: Number of the step, from 1.
        excesses: What stands out.
        keys: Its samples, those with the largest loss first.
    """
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    log.warning("step %d: %s, in %s%s", step, reason(excesses), ", ".join(keys[:_NAMED]), more)
