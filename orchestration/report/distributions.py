"""Distributions: the scores that the report draws as histograms, with the filters' limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from annotate.filters import FilterSettings
from orchestration.report.charts import Histogram, Threshold, histogram_svg
from talkinghead.schema import SampleIndex
from talkinghead.timebase import FPS


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One score: how it is read from an index row, and the filter settings that limit it."""

    title: str
    unit: str = ""
    score: str | None = None
    """Name of the clip score; None: the length of the clip."""
    limits: tuple[str, ...] = ()
    """Names of the filter settings that limit it, `min_…` or `max_…`."""
    to_unit: Callable[[float], float] = float
    """Conversion from a limit's unit to the drawn one."""

    def value(self, row: SampleIndex) -> float:
        """The score of a sample; NaN when it has none."""
        if self.score is None:
            return row.num_frames / FPS
        value = row.scores.get(self.score)
        return math.nan if value is None else value

    def thresholds(self, filters: FilterSettings | None) -> list[Threshold]:
        """Lines to draw, for the limits that are switched on."""
        values = {name: getattr(filters, name) for name in self.limits} if filters else {}
        return [
            Threshold(value=self.to_unit(value), label="least" if name.startswith("min_") else "most")
            for name, value in values.items()
            if value is not None
        ]


# In the order of the page. Scores without limits are shown because they describe the data.
DISTRIBUTIONS = (
    Distribution(title="Clip length", unit="s", limits=("min_frames",), to_unit=lambda frames: frames / FPS),
    Distribution(title="Face height in the source", unit="px", score="face_source_px", limits=("min_face_source_px",)),
    Distribution(title="Face height in the clip", unit="px", score="face_height_px"),
    Distribution(title="Yaw, median of |angle|", unit="°", score="yaw_abs_median", limits=("max_yaw_abs_median",)),
    Distribution(title="Mouth opening, mean", unit="of its width", score="mouth_opening_mean"),
    Distribution(title="Sharpness", unit="Laplacian variance", score="sharpness", limits=("min_sharpness",)),
    Distribution(title="Brightness", unit="of 255", score="brightness", limits=("min_brightness", "max_brightness")),
    Distribution(title="Landmark jitter", unit="px at 512", score="jitter_px", limits=("max_jitter_px",)),
    Distribution(title="Frames with a face", unit="share", score="valid_fraction", limits=("min_valid_fraction",)),
    Distribution(title="Change of the face", unit="of its contrast", score="face_change", limits=("min_face_change",)),
    Distribution(title="Longest freeze", unit="s", score="longest_freeze_s", limits=("max_freeze_s",)),
    Distribution(
        title="New images in movement", unit="fps", score="source_motion_fps", limits=("min_source_motion_fps",)
    ),
    Distribution(title="Drift of the face's shape", unit="cm", score="identity_drift", limits=("max_identity_drift",)),
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram as the page shows it."""

    title: str
    unit: str
    svg: Markup
    median: float | None
    """Median of the kept samples."""
    limits: int
    """Number of limits drawn."""


def charts(index: list[SampleIndex], filters: FilterSettings | None = None) -> list[Chart]:
    """Histograms of all distributions for which at least one sample has a value.

    Args:
        index: All rows, kept or not.
        filters: Thresholds to draw; None: none.
    """
    drawn = []
    for distribution in DISTRIBUTIONS:
        # [N] each: the value (NaN where there is none), and whether the sample is kept.
        values = np.array([distribution.value(row) for row in index], np.float64)
        keep = np.array([row.keep for row in index], bool)
        found = chart(distribution.title, distribution.unit, values, keep, distribution.thresholds(filters))
        if found is not None:
            drawn.append(found)
    return drawn


def chart(
    title: str, unit: str, values: np.ndarray, keep: np.ndarray, thresholds: Sequence[Threshold] = ()
) -> Chart | None:
    """Histogram of one score; None where no sample has a value.

    Args:
        title: Name of the score.
        unit: Its unit; empty where it has none.
        values: Value of each sample, `[N]`; NaN where it has none.
        keep: Samples that the filters keep, `[N]` bool.
        thresholds: Limits to draw.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    kept = values[keep & finite]
    histogram = Histogram.of(kept, values[~keep & finite], thresholds)
    return Chart(
        title=title,
        unit=unit,
        svg=histogram_svg(title, histogram, thresholds, unit),
        median=float(np.median(kept)) if kept.size else None,
        limits=len(thresholds),
    )
