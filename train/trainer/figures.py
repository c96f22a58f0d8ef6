"""Figures of a training from one line of `metrics.jsonl` to the next: sums over samples, which the line shows as means.

A figure is a mean over all samples of the steps, or, where a task says so (`Step.figures`), over those that it speaks
of: the samples of a range of timesteps, or those that lost a condition. Skipped steps count in neither.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from train.task import Losses, PartialFigures
from train.trainer.throughput import Throughput

log = logging.getLogger(__name__)

CRITIC = "critic/"
"""Beginning of the names of the critic's figures."""
Number = TypeVar("Number", float, Tensor)
_COUNT = "\n"  # begins the name under which the samples of a partial figure are counted; no figure is named so


def sums_of(
    losses: Sequence[Losses], figures: Sequence[PartialFigures] = (), judged: Sequence[Losses] = ()
) -> dict[str, Tensor]:
    """Sums over the microbatches of a rank: name → scalar float64 tensor, to be added up over the ranks.

    Args:
        losses: Losses `[B]` of each microbatch.
        figures: Partial figures of each: values `[B]`, and the samples that count.
        judged: Losses of the critic for each.
    """
    found = {name: _sum([part[name] for part in losses]) for name in (losses[0] if losses else ())}
    found |= {CRITIC + name: _sum([part[name] for part in judged]) for name in (judged[0] if judged else ())}
    for name in figures[0] if figures else ():
        # `where` and no product: what does not count may be NaN.
        found[name] = _sum([torch.where(part[name][1], part[name][0], 0.0) for part in figures])
        found[_COUNT + name] = _sum([part[name][1] for part in figures])
    return found


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts]).double().sum()


def split(sums: Mapping[str, Number]) -> tuple[dict[str, Number], dict[str, tuple[Number, Number]]]:
    """Sums over all samples, and name → (sum, count) of the partial figures, of what `sums_of` gave."""
    counted = {name.removeprefix(_COUNT) for name in sums if name.startswith(_COUNT)}
    whole = {name: value for name, value in sums.items() if name not in counted and not name.startswith(_COUNT)}
    return whole, {name: (sums[name], sums[_COUNT + name]) for name in sums if name in counted}


class Interval:
    """Steps between two lines, on one rank; every rank has the same sums.

    Args:
        clock: Clock of the steps.

    Attributes:
        newest: Figures of the newest line.
    """

    def __init__(self, clock: Throughput) -> None:
        self.clock = clock
        self.newest: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._sums: Counter[str] = Counter()  # over the samples of the steps, without skipped ones
        self._samples = 0.0
        self._partial: dict[str, tuple[float, float]] = {}
        self._latest: dict[str, float] = {}
        self._read = 0.0  # samples of all steps, of skipped ones, too

    def read(self, samples: float) -> None:
        """Note the samples of a step, whatever becomes of it."""
        self._read += samples

    def add(
        self,
        sums: Mapping[str, float],
        partial: Mapping[str, tuple[float, float]],
        norms: Mapping[str, float],
        samples: float,
    ) -> None:
        """Add a step that was not skipped.

        Args:
            sums: Sums over its samples, on all ranks.
            partial: Sum and count of each partial figure.
            norms: Norms of its gradients.
            samples: Number of its samples.
        """
        # Logged as means over the samples: norms belong to the whole batch, hence the factor.
        self._sums.update({**sums, **{name: norm * samples for name, norm in norms.items()}})
        self._samples += samples
        for name, (value, count) in partial.items():
            before = self._partial.get(name, (0.0, 0.0))
            self._partial[name] = before[0] + value, before[1] + count

    def note(self, figures: Mapping[str, float]) -> None:
        """Set figures of the newest step alone."""
        self._latest.update(figures)

    def line(self, *, epoch: float, learning_rate: float, skipped: int) -> dict[str, float]:
        """Figures of the line that ends here; the next interval begins. Collective.

        A partial figure without a sample in these steps is NaN.

        Args:
            epoch: Epochs that were read.
            learning_rate: Learning rate of the newest step.
            skipped: Number of steps that were skipped since the first.
        """
        self.samples_per_step = self._read / max(1, self.clock.steps)
        means = {name: value / self._samples for name, value in self._sums.items()}
        partial = {name: value / count if count else math.nan for name, (value, count) in self._partial.items()}
        speed = self.clock.interval(self._read)
        self.newest = {
            "epoch": epoch,
            **means,
            **partial,
            **self._latest,
            "learning_rate": learning_rate,
            **speed,
            "skipped": skipped,
        }
        self._begin()
        return self.newest

    def tell(self, step: int, steps: int) -> None:
        """Log the newest line for people, with an estimate of the time left.

        Args:
            step: Number of steps that are done.
            steps: Total number of steps.
        """
        line = self.newest
        left = timedelta(seconds=round((steps - step) * self.samples_per_step / line["samples_per_s"]))
        log.info(
            "step %d/%d  loss %s  %.3g samples/s  data wait %.1f %%  %s left",
            step,
            steps,
            f"{line['loss']:.5g}" if "loss" in line else "(all skipped)",
            line["samples_per_s"],
            100 * line["data_wait"],
            left,
        )
