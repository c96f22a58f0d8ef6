"""The figures of a training: to `metrics.jsonl` always, to TensorBoard and an online service if asked; and back.

A line of `metrics.jsonl` is an object with `step` (updates done, from 1) and figures; those of a validation have names
with `validation/`. One that is NaN or infinite is null. A skipped step has a line of its own: `event`, `what`, `keys`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from talkinghead.files.atomic import write_whole
from train.config import LogConfig

log = logging.getLogger(__name__)

VALIDATION = "validation/"
_NOT_FIGURES = ("step", "epoch", "event")


# --- writing ----------------------------------------------------------------------------------------------------------


def check_online(config: LogConfig) -> None:
    """Raise `ValueError` if the package of the asked service is not installed."""
    spec = importlib.util.find_spec(config.online) if config.online else None
    # Without an origin it is no package but a folder of that name, as wandb leaves one where it runs.
    if config.online and (spec is None or spec.origin is None):
        raise ValueError(
            f"log.online is {config.online}, and that package is not installed: pip install {config.online},"
            " or leave log.online out"
        )


class Sink(Protocol):
    """One place for figures."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the figures of a step."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class Tracker:
    """The figures of a run; rank 0 has it.

    Figures are means since the line before; the first line after a resume has fewer steps in it, since such sums are
    not in the checkpoints.

    Args:
        metrics: The `metrics.jsonl`. Lines after `step` are of a training that was killed there: they are cut off.
        tensorboard: Folder for TensorBoard.
        config: What is wanted.
        step: The training goes on from here; 0 for a new one.
        name: Name of the run for the online service.
    """

    def __init__(self, metrics: Path, tensorboard: Path, config: LogConfig, step: int, name: str) -> None:
        check_online(config)
        cut(metrics, step)
        self._file = metrics.open("a", encoding="utf-8")
        self._sinks: list[Sink] = []
        if config.tensorboard:
            self._sinks.append(TensorBoard(tensorboard, step))
        if config.online:
            self._sinks.append(Online(config.online, config.project, name, metrics.parent))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures of a step, to all places."""
        self._write({"step": step} | values)
        for sink in self._sinks:
            sink.log(step, values)

    def skipped(self, step: int, what: str, keys: Sequence[str]) -> None:
        """A skipped step and its samples, to `metrics.jsonl`."""
        self._write({"step": step, "event": "skipped", "what": what, "keys": list(keys)})

    def close(self) -> None:
        """No more figures."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON knows no NaN; a figure that is not a number is null.
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class TensorBoard:
    """Event files; a viewer hides what an earlier, killed training wrote after the step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Online:
    """wandb or trackio, whose interface is made after wandb's. A resumed run goes on under its name."""

    def __init__(self, package: str, project: str, name: str, folder: Path) -> None:
        self._package = importlib.import_module(package)
        # trackio knows a run by its name, and keeps what it has in the user's cache.
        only_wandb = {"id": name, "dir": str(folder)} if package == "wandb" else {}
        self._package.init(project=project, name=name, resume="allow", **only_wandb)
        if package == "wandb":
            # Figures of a validation come late, and wandb drops what is older than its own step: `step` is the axis.
            self._package.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send them."""
        if self._package.__name__ == "wandb":
            self._package.log({"step": step} | values)
        else:
            self._package.log(values, step=step)

    def close(self) -> None:
        """Send the rest."""
        self._package.finish()


def cut(metrics: Path, step: int) -> None:
    """Drop lines after a step, a last line that a killed writer left unfinished, and damaged ones.

    The file is replaced at once.
    """
    if not metrics.exists():
        return
    text = metrics.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]
    rows = [parse_line(line) for line in lines]
    if damaged := rows.count(None):
        log.warning("%d lines of %s cannot be read and are dropped", damaged, metrics)
    kept = [line for line, row in zip(lines, rows, strict=True) if row is not None and row["step"] <= step]
    write_whole(metrics, "".join(f"{line}\n" for line in kept).encode())


# --- reading ----------------------------------------------------------------------------------------------------------


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
