"""Which scores the report draws as histograms, and which filter limits belong to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from orchestration.report.charts import Histogram, Threshold, histogram_svg
from talkinghead.schema import SampleIndex
from talkinghead.timebase import FPS


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One score: how it is read from an index row, and the filter settings that limit it."""

    title: str
    unit: str = ""
    scores: tuple[str, ...] = ()
    """Names of the clip score, the first that a row has counts; none: the length of the clip."""
    limits: tuple[tuple[str, str], ...] = ()
    """(field of the filter settings, label of its line)."""
    to_unit: Callable[[float], float] = float
    """From a limit's unit to the drawn one."""

    def value(self, row: SampleIndex) -> float:
        """The score of a sample; NaN when it has none."""
        if not self.scores:
            return row.num_frames / FPS
        found = next((row.scores[name] for name in self.scores if row.scores.get(name) is not None), None)
        return math.nan if found is None else found

    def thresholds(self, filters: Any) -> list[Threshold]:
        """Lines to draw: those limits that the settings have and that are switched on."""
        values = [(getattr(filters, name, None), label) for name, label in self.limits]
        return [
            Threshold(value=self.to_unit(value), label=label)
            for value, label in values
            if isinstance(value, int | float) and math.isfinite(value)
        ]


DISTRIBUTIONS = (Distribution(title="Clip length", unit="s"),)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram as the page shows it."""

    title: str
    unit: str
    svg: Markup
    median: float | None
    """Of the kept samples."""
    limits: int


def charts(index: list[SampleIndex], filters: Any = None) -> list[Chart]:
    """A histogram of each distribution that at least one sample has a value of."""
    drawn = []
    for distribution in DISTRIBUTIONS:
        values = np.array([distribution.value(row) for row in index], np.float64)
        keep = np.array([row.keep for row in index], bool)
        finite = np.isfinite(values)
        if not finite.any():
            continue
        thresholds = distribution.thresholds(filters)
        kept = values[keep & finite]
        histogram = Histogram.of(kept, values[~keep & finite], thresholds)
        drawn.append(
            Chart(
                title=distribution.title,
                unit=distribution.unit,
                svg=histogram_svg(distribution.title, histogram, thresholds, distribution.unit),
                median=float(np.median(kept)) if kept.size else None,
                limits=len(thresholds),
            )
        )
    return drawn
