"""Bootstrap intervals of means over clips, where clips of one person are not independent of each other.

Groups of clips (a person's, or a source video's) are drawn with replacement, as many as there are, and the mean is
taken again; the interval holds the middle 95 % of these means (the percentile method of Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993; groups as a whole: Cameron, Gelbach and Miller, "Bootstrap-Based Improvements for
Inference with Clustered Errors", 2008). Draws are keyed by the seed and the groups alone, so that the same clips give
the same draws whatever is measured on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from talkinghead.rng import generator

RESAMPLES = 2000
"""Number of resamples by default."""
FEWEST_GROUPS = 5
"""Number of groups below which an interval means little: the draws are few, and the interval is too narrow."""
_LOW, _HIGH = 2.5, 97.5  # percentiles


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean over clips with its 95 % interval."""

    mean: float
    low: float | None
    """Lower end; None with a single group, from which nothing can be drawn."""
    high: float | None
    """Upper end, or None."""
    clips: int
    """Number of clips with a value."""
    groups: int
    """Number of groups that these are of."""

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies in it; without an interval it may."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def mean_interval(
    values: Mapping[str, float],
    weights: Mapping[str, int],
    groups: Mapping[str, str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Mean of clips' values, weighted by their measured frames, and its interval.

    Args:
        values: Clip → value, of those that have one; seeds are averaged before.
        weights: Clip → measured frames.
        groups: Clip → group that is drawn as a whole.
        seed: Seed of the draws.
        resamples: Number of resamples.

    Returns:
        The interval; None where no clip has a value.
    """
    if not values:
        return None
    # Sums of each group, [G]: a resample's mean is a ratio of sums over the groups that were drawn.
    names = sorted({groups[key] for key in values})
    rows = {name: row for row, name in enumerate(names)}
    total, weight = np.zeros(len(names)), np.zeros(len(names))
    for key, value in values.items():
        total[rows[groups[key]]] += weights[key] * value
        weight[rows[groups[key]]] += weights[key]
    mean = float(total.sum() / weight.sum())
    if len(names) < 2:
        return Interval(mean=mean, low=None, high=None, clips=len(values), groups=len(names))
    # How often each group is drawn in each resample, [R, G].
    draws = _draws(seed, tuple(names), resamples)
    low, high = np.percentile((draws @ total) / (draws @ weight), (_LOW, _HIGH))
    return Interval(mean=mean, low=float(low), high=float(high), clips=len(values), groups=len(names))


@lru_cache(maxsize=8)  # every metric of a table is drawn over the same few sets of groups
def _draws(seed: int, names: tuple[str, ...], resamples: int) -> np.ndarray:
    """How often each group is drawn in each resample, `[R, G]`."""
    count = len(names)
    return generator(seed, "bootstrap", *names).multinomial(count, np.full(count, 1 / count), size=resamples)
