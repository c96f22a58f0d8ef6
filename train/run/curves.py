"""The figures of `metrics.jsonl`, sorted by name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION = "validation/"
_NOT_FIGURES = ("step", "epoch", "event")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure over the steps."""

    steps: np.ndarray
    """`[N]`, rising."""
    values: np.ndarray
    """`[N]`; NaN where a value was not finite."""

    @property
    def last(self) -> float | None:
        """The newest finite value."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else None


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A step that was skipped because something was not finite."""

    step: int
    what: str
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a training has logged so far."""

    training: dict[str, Curve] = field(default_factory=dict)
    """Name → curve, `loss` first."""
    validation: dict[str, Curve] = field(default_factory=dict)
    """Name without `validation/` → curve."""
    skips: tuple[Skip, ...] = ()
    step: int = 0
    """The newest step."""
    epoch: float | None = None
    damaged_lines: int = 0
    """Lines that cannot be read: the one that a killed writer had begun, or a damaged file."""


def read_metrics(path: Path) -> Metrics:
    """Read a `metrics.jsonl`: an object a line, `step` and figures whatever their names; no file counts as empty.

    Of several values for one step (a resumed run may repeat it) the last counts.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Metrics()
    values: dict[str, dict[int, float]] = {}
    skips: list[Skip] = []
    damaged, newest, epoch = 0, 0, None
    for line in text.splitlines():
        if not line.strip():
            continue
        row = parse_line(line)
        if row is None:
            damaged += 1
            continue
        step = int(row["step"])
        newest = max(newest, step)
        if row.get("event") == "skipped":
            skips.append(Skip(step=step, what=str(row.get("what", "")), keys=tuple(map(str, row.get("keys") or ()))))
        if isinstance(row.get("epoch"), int | float):
            epoch = float(row["epoch"])
        for name, value in row.items():
            if name not in _NOT_FIGURES and isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, {})[step] = value if math.isfinite(value) else math.nan
    curves = {name: _curve(points) for name, points in values.items()}
    training = {name: curve for name, curve in curves.items() if not name.startswith(VALIDATION)}
    return Metrics(
        training=dict(sorted(training.items(), key=lambda item: item[0] != "loss")),
        validation={
            name.removeprefix(VALIDATION): curve for name, curve in curves.items() if name.startswith(VALIDATION)
        },
        skips=tuple(skips),
        step=newest,
        epoch=epoch,
        damaged_lines=damaged,
    )


def parse_line(line: str) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`; None when it is damaged."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _curve(points: dict[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(steps=np.array(steps), values=np.array([points[step] for step in steps], dtype=np.float64))
