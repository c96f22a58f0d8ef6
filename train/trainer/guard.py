"""Guard of the steps: those that must not reach the weights are skipped, and those that stand out are warned of.

Every rank has the same sums and norms, and so decides the same. What decides is in the checkpoints: a resumed run skips
the same steps.
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
_WATCHED = ("loss", COMMON)


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


class RunningMedian:
    """Losses and gradient norms of the newest steps, against which a step is held.

    Args:
        config: Limits, and the number of steps whose median counts.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        # One row for each figure, the newest value last; NaN where there has been no step yet.
        self._values = torch.full((len(_WATCHED), _KEPT), math.nan, dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Values to keep in a checkpoint; filling them restores the medians."""
        return {"values": self._values}

    def excesses(self, loss: float, norms: Mapping[str, float], limit: float | None) -> list[Excess]:
        """What of a step is above a multiple of the running median; nothing without a limit.

        A median of 0 or below says nothing about size: there is no alarm then.

        Args:
            loss: Mean loss of the step.
            norms: Norms of its gradients.
            limit: The multiple.
        """
        found = []
        for row, (name, value) in enumerate(zip(_WATCHED, (loss, norms[COMMON]), strict=True)):
            values = self._values[row, -self.config.window :]
            values = values[values.isfinite()]
            if limit is None or len(values) < _FEWEST:
                continue
            median = float(values.median())
            if median > 0 and value > limit * median:
                new = float(values[-1]) <= limit * median
                found.append(Excess(name=name, value=value, times=value / median, new=new))
        return found

    def add(self, loss: float, norms: Mapping[str, float]) -> None:
        """Note a step that was not skipped."""
        newest = torch.tensor([[loss], [norms[COMMON]]], dtype=torch.float64)
        # In place: a checkpoint is filled into this tensor.
        self._values.copy_(torch.cat([self._values[:, 1:], newest], dim=1))


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
