"""Plots of a training as PNG: curves over the steps, and what was predicted for held-out clips against the truth."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from infer.evaluation.motion_evaluation import Trace
from talkinghead import timebase
from talkinghead.files.atomic import write_whole
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.motion.smoothing import moving_average
from train.run.metrics import Curve, Skip

INK, MUTED, LINE = "#1c2024", "#5f6871", "#e4e2dc"
TRUTH = "#8a9098"
PREDICTIONS = ("#0d7d77", "#d08a2c", "#7a4fb3")
BAD = "#b5373f"
POSE_NAMES = ("pitch (°)", "yaw (°)", "roll (°)", "right (cm)", "up (cm)", "near (cm)")
_DPI = 110
_TITLE_LENGTH = 60
_LABEL_LENGTH = 30
_LINES = ("#0d7d77", "#d08a2c", "#7a4fb3", "#b5373f", "#3f6fb5", "#7d8a1c", "#8a5a3c", "#5f6871")
MOST_LINES = len(_LINES)
"""Number of figures that one plot shows, the first ones."""
_LARGEST = 1e100
"""Size of a value from which it is left out: the scale of an axis overflows long before a float does."""
MOST_SHOWN = 4
"""Number of clips of a group whose plots and videos are written, the first ones."""
_SMOOTH_FROM = 40  # number of points from which a curve gets a smoothed line, too: the mean over a 20th of it


def plot_loss(curve: Curve, skips: tuple[Skip, ...] = (), name: str = "loss", held_out: Curve | None = None) -> bytes:
    """Plot of the loss over the steps, as logged and smoothed, with that on held-out clips; skipped steps are marked at
    the bottom."""
    figure, (axes,) = _figure(1, width=9.6, height=3.4)
    if held_out is not None and len(held_out.steps):
        values = np.where(np.abs(held_out.values) < _LARGEST, held_out.values, np.nan)
        axes.plot(held_out.steps, values, color=PREDICTIONS[1], linewidth=1.7, marker="o", ms=3, label="held-out clips")
        axes.plot([], [], color=PREDICTIONS[0], linewidth=1.7, label="training")
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=INK)
    _draw_curve(axes, curve)
    axes.set_ylabel(name)
    axes.set_xlabel("step")
    if skips:
        # x in steps, y in shares of the height: marks stay at the bottom whatever the scale of the loss.
        at = [skip.step for skip in skips]
        axes.plot(at, np.full(len(at), 0.02), "|", transform=axes.get_xaxis_transform(), color=BAD, markersize=10)
        axes.text(
            1, 1.02, f"{len(at)} skipped", color=BAD, ha="right", va="bottom", transform=axes.transAxes, fontsize=9
        )
    return _png(figure)


def plot_small(name: str, curve: Curve) -> bytes:
    """Small plot of any other figure over the steps."""
    figure, (axes,) = _figure(1, width=3.6, height=2.0)
    _draw_curve(axes, curve)
    # A name is no formula, whatever signs it has; and one that does not fit would be laid out all the same.
    axes.set_title(name[:_TITLE_LENGTH], loc="left", fontsize=10, color=INK, parse_math=False)
    return _png(figure)


def plot_several(name: str, curves: Mapping[str, Curve]) -> bytes:
    """Small plot of figures that are to be compared, smoothed where they have many points."""
    figure, (axes,) = _figure(1, width=3.6, height=2.4)
    shown = list(curves.items())[:MOST_LINES]
    finite = [np.empty(0)]
    for colour, (label, curve) in zip(_LINES, shown, strict=False):
        values = np.where(np.abs(curve.values) < _LARGEST, curve.values, np.nan)
        if len(values) >= _SMOOTH_FROM:
            values = moving_average(values, len(values) // 40 * 2 + 1)
        marker = "o" if len(values) <= 12 else ""
        axes.plot(curve.steps, values, color=colour, linewidth=1.3, marker=marker, ms=3, label=label[:_LABEL_LENGTH])
        finite.append(values[np.isfinite(values)])
    every = np.concatenate(finite)
    if len(every) and every.min() > 0 and every.max() > 30 * every.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(name[:_TITLE_LENGTH], loc="left", fontsize=10, color=INK, parse_math=False)
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, frameon=False, fontsize=7.5, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def plot_mouth_opening(trace: Trace) -> bytes:
    """Plot of predicted and true mouth opening of a clip over time."""
    assert trace.kind == "mesh"
    figure, (axes,) = _figure(1, width=9.6, height=2.6)
    time = np.arange(trace.clip.num_frames) / timebase.FPS
    # cm → mm. The truth is drawn first, and wider, so that a prediction that meets it stays visible.
    axes.plot(time, 10 * lip_gap(trace.true), color=TRUTH, linewidth=2.6, label="truth", solid_joinstyle="round")
    for colour, (name, mesh) in zip(PREDICTIONS, trace.predictions.items(), strict=False):
        axes.plot(time, 10 * lip_gap(mesh), color=colour, linewidth=1.4, label=name)
    axes.set_ylabel("mouth opening (mm)")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, time[-1] if len(time) > 1 else 1)
    _legend(axes)
    return _png(figure)


def plot_pose(trace: Trace) -> bytes:
    """Plot of predicted and true head pose of a clip over time, one panel for each of the six numbers."""
    assert trace.kind == "pose"
    figure, panels = _figure(6, width=9.6, height=5.2, columns=2)
    time = np.arange(trace.clip.num_frames) / timebase.FPS
    for number, axes in enumerate(panels):
        axes.axhline(0, color=LINE, linewidth=1)
        axes.plot(time, trace.true[:, number], color=TRUTH, linewidth=2.2, label="truth")
        for colour, (name, pose) in zip(PREDICTIONS, trace.predictions.items(), strict=False):
            axes.plot(time, pose[:, number], color=colour, linewidth=1.3, label=name)
        axes.set_ylabel(POSE_NAMES[number])
        axes.set_xlim(0, time[-1] if len(time) > 1 else 1)
        if number >= 4:
            axes.set_xlabel("seconds")
    _legend(panels[0])
    return _png(figure)


class ValidationFigures:
    """Writer of plots and videos of the first clips of an evaluation, to be passed as `on_clip`.

    Args:
        folder: Folder for `mouth-<key>.png` or `pose-<key>.png`, and `<key>.mp4`.
        video: Function that writes the video of a trace to a path; None: no videos.
        most: Number of clips that get figures, the first ones that come.
    """

    def __init__(
        self, folder: Path, video: Callable[[Trace, Path], None] | None = None, most: int = MOST_SHOWN
    ) -> None:
        self.folder, self.video, self.left = folder, video, most

    def __call__(self, trace: Trace) -> None:
        """Write the figures of one clip."""
        if self.left <= 0:
            return
        self.left -= 1
        word, plot = ("mouth", plot_mouth_opening) if trace.kind == "mesh" else ("pose", plot_pose)
        write_whole(self.folder / f"{word}-{trace.clip.key}.png", plot(trace))
        if self.video:
            self.video(trace, self.folder / f"{trace.clip.key}.mp4")


def plot_all(curves: Mapping[str, Curve]) -> dict[str, bytes]:
    """Small plot of each curve, by name."""
    return {name: plot_small(name, curve) for name, curve in curves.items()}


def _draw_curve(axes: Axes, curve: Curve) -> None:
    values = np.where(np.abs(curve.values) < _LARGEST, curve.values, np.nan)
    many = len(curve.steps) >= _SMOOTH_FROM
    # Few points get markers, since a single one would not show as a line.
    marker = "o" if len(curve.steps) <= 12 else ""
    axes.plot(curve.steps, values, color=PREDICTIONS[0], linewidth=1.3, alpha=0.3 if many else 1, marker=marker, ms=3)
    if many:
        window = len(curve.steps) // 40 * 2 + 1
        axes.plot(curve.steps, moving_average(values, window), color=PREDICTIONS[0], linewidth=1.7)
    finite = values[np.isfinite(values)]
    if len(finite) and np.ptp(finite) <= 1e-6 * np.abs(finite).max():  # a constant: else the axis shows its rounding
        axes.set_ylim(finite[0] - 0.1 * abs(finite[0]) - 1e-12, finite[0] + 0.1 * abs(finite[0]) + 1e-12)
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        # Loss and gradient norm fall over orders of magnitude.
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _figure(panels: int, *, width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    # `Figure` without pyplot: it needs no display and keeps no global list of figures.
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    found = []
    for number in range(panels):
        axes = figure.add_subplot(math.ceil(panels / columns), columns, number + 1)
        axes.spines[["top", "right"]].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(MUTED)
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        found.append(axes)
    return figure, found


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=4,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        borderaxespad=0.1,
    )


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # Without the version of matplotlib in the file, equal figures give equal bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
