"""Charts as inline SVG, which prints, scales, and takes its colours from the page's style sheet, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

BINS = 32
LARGEST = 1e300
"""Scores may be a stranger's: larger ones count as this, so that differences are finite."""
# In the chart's own units; the page scales it.
_WIDTH, _HEIGHT = 320, 132
_LEFT, _TOP, _BASE = 6, 16, 104  # plot area: x from _LEFT to _WIDTH - _LEFT, y from _TOP down to _BASE
_TAIL_PERCENT = 0.5


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Limit of a filter, drawn as a vertical line in a histogram."""

    value: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of one score over kept and rejected samples, in bins of equal width.

    The range leaves out the outermost 0.5 % at each end; what lies there is counted in the end bins.
    """

    edges: np.ndarray
    """Limits of the bins, `[BINS + 1]`."""
    kept: np.ndarray
    """Number of kept samples in each bin, `[BINS]`."""
    rejected: np.ndarray
    """Number of rejected samples in each bin, `[BINS]`."""

    @classmethod
    def of(cls, kept: ArrayLike, rejected: ArrayLike, thresholds: Sequence[Threshold] = ()) -> Histogram:
        """Count values in bins that cover the thresholds, too; values that are not finite are left out.

        Args:
            kept: Values of kept samples, `[N]`.
            rejected: Values of rejected samples, `[M]`.
            thresholds: Limits to cover.
        """
        sides = [np.asarray(side, np.float64) for side in (kept, rejected)]
        sides = [np.clip(side[np.isfinite(side)], -LARGEST, LARGEST) for side in sides]
        values = np.concatenate(sides)
        if values.size == 0:
            return cls(edges=np.linspace(0, 1, BINS + 1), kept=np.zeros(BINS, int), rejected=np.zeros(BINS, int))
        # Range: the central 99 % and every threshold, with a margin; from 0 where that is near.
        inside = [*np.percentile(values, [_TAIL_PERCENT, 100 - _TAIL_PERCENT]), *(line.value for line in thresholds)]
        low, high = min(inside), max(inside)
        pad = 0.04 * (high - low) or max(abs(high) * 0.05, 0.5)
        first = 0.0 if low >= 0 and low - pad < 0.3 * high else low - pad
        edges = np.linspace(first, high + pad, BINS + 1)
        # Outliers count into the end bins instead of stretching the range.
        counts = [np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0] for side in sides]
        return cls(edges=edges, kept=counts[0], rejected=counts[1])


def histogram_svg(title: str, histogram: Histogram, thresholds: Sequence[Threshold] = (), unit: str = "") -> Markup:
    """Draw kept (below) and rejected (on top) as stacked bars, thresholds as dashed lines."""
    # Scales: counts to heights, values to places.
    edges, kept, rejected = histogram.edges, histogram.kept, histogram.rejected
    top = max(int((kept + rejected).max()), 1)
    span = float(edges[-1] - edges[0])

    def x(value: float) -> float:
        return _LEFT + (value - float(edges[0])) / span * (_WIDTH - 2 * _LEFT)

    # Bars, each with a text that browsers show under the pointer.
    parts = []
    step = (_WIDTH - 2 * _LEFT) / len(kept)
    for number, (good, bad) in enumerate(zip(kept.tolist(), rejected.tolist(), strict=True)):
        if not good + bad:
            continue
        heights = [count / top * (_BASE - _TOP) for count in (good, bad)]
        left = _LEFT + number * step
        tip = f"{_short(edges[number])} – {_short(edges[number + 1])} {unit}: {good} kept, {bad} left out"
        bars = f'<rect class="kept" x="{left:.1f}" y="{_BASE - heights[0]:.1f}" width="{step - 1:.1f}" '
        bars += f'height="{heights[0]:.1f}"/>'
        bars += f'<rect class="rejected" x="{left:.1f}" y="{_BASE - sum(heights):.1f}" width="{step - 1:.1f}" '
        bars += f'height="{heights[1]:.1f}"/>'
        parts.append(f"<g>{bars}<title>{escape(tip)}</title></g>")
    # Axis.
    for tick in _ticks(float(edges[0]), float(edges[-1])):
        parts.append(f'<line class="tick" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_BASE}" y2="{_BASE + 4}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{_BASE + 17}" text-anchor="middle">{_short(tick)}</text>')
    # Thresholds; their labels turn inwards, so that none leaves the chart.
    for line in thresholds:
        at = x(line.value)
        anchor = "start" if at < _WIDTH / 2 else "end"
        parts.append(f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{_BASE}"/>')
        parts.append(
            f'<text class="limit" x="{at + (4 if anchor == "start" else -4):.1f}" y="{_TOP - 5}" '
            f'text-anchor="{anchor}">{escape(line.label)} {_short(line.value)}</text>'
        )
    label = (
        f"{title}: {int(kept.sum())} kept and {int(rejected.sum())} left out, {_short(edges[0])} to {_short(edges[-1])}"
    )
    axis = f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{_BASE}" y2="{_BASE}"/>'
    return _svg(_WIDTH, _HEIGHT, f"{label} {unit}", axis + "".join(parts), "histogram")


def sparkline_svg(values: np.ndarray, low: float, high: float, label: str, *, zero: bool = False) -> Markup:
    """Draw one value over time as a line with gaps where it is NaN. It stretches to the box that it is put in.

    Args:
        values: One value per frame, `[F]`; long clips are thinned to 300 points.
        low: Value at the bottom edge; lower values are clipped.
        high: Value at the top edge; higher values are clipped.
        label: Description for people who cannot see the chart.
        zero: Whether to draw a line at zero.
    """
    width, height = 600, 40
    values = np.asarray(values, np.float64)
    values = values[np.linspace(0, len(values) - 1, min(len(values), 300)).astype(int)] if len(values) else values
    xs = np.linspace(0, width, max(len(values), 2))
    ys = height - 2 - (np.clip(values, low, high) - low) / ((high - low) or 1) * (height - 4)
    # One polyline for each stretch without a gap.
    stretches: list[list[str]] = [[]]
    for x, y in zip(xs, ys, strict=False):
        if math.isfinite(y):
            stretches[-1].append(f"{x:.0f},{y:.1f}")
        elif stretches[-1]:
            stretches.append([])
    body = ""
    if zero and low < 0 < high:
        level = height - 2 + low / (high - low) * (height - 4)
        body = f'<line class="axis" x1="0" x2="{width}" y1="{level:.1f}" y2="{level:.1f}"/>'
    body += "".join(f'<polyline points="{" ".join(stretch)}"/>' for stretch in stretches if stretch)
    return _svg(width, height, label, body, "spark", stretch=True)


def waveform_svg(envelope: np.ndarray, label: str) -> Markup:
    """Draw a sound's envelope, `[N]` in 0 .. 1, mirrored about the middle."""
    width, height = 600, 40
    xs = np.linspace(0, width, max(len(envelope), 2))
    # At least a hairline, so that silence is visible as such.
    half = np.clip(np.asarray(envelope, np.float64), 0, 1) * (height / 2 - 1) + 0.4
    upper = [f"{x:.0f},{height / 2 - h:.1f}" for x, h in zip(xs, half, strict=False)]
    lower = [f"{x:.0f},{height / 2 + h:.1f}" for x, h in zip(xs, half, strict=False)]
    body = f'<polygon points="{" ".join(upper + lower[::-1])}"/>' if len(envelope) else ""
    return _svg(width, height, label, body, "wave", stretch=True)


def _svg(width: int, height: int, label: str, body: str, kind: str, *, stretch: bool = False) -> Markup:
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    head = f'<svg class="{kind}" viewBox="0 0 {width} {height}"{ratio} role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{body}</svg>")  # numbers, and text that went through escape


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers inside the range, for the axis."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [(first + number) * step for number in range(int((high - first * step) / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """Number with at most three significant digits below 100, else whole; no exponent for everyday sizes."""
    value = float(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) > 1e-9 else "0"
