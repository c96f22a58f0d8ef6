"""Figures of a training: written to `metrics.jsonl` always, to TensorBoard and an online service if asked; and read.

A line of `metrics.jsonl` is an object with `step` (updates done, from 1) and figures; those of a validation have names
that begin with `validation/`. A figure that is NaN or infinite is null. A skipped step has a line of its own with
`event`, `what` and `keys`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import open_own, open_regular, parse_json, refuse_large
from train.config import LogConfig

log = logging.getLogger(__name__)

VALIDATION = "validation/"
MOST_FIGURES = 300
"""Number of figures that are read, those that come first: each makes a plot."""
_NOT_FIGURES = ("step", "epoch", "event")
_FILE_BYTES = 256 << 20  # a line has some 300 bytes, so this is a million of them
_LINE_BYTES = 1 << 20
_MOST_STEPS = 1 << 53
_SERVICES = ("wandb", "trackio")
_ONLY_FIGURES = {
    "WANDB__DISABLE_META": "true",
    "WANDB__DISABLE_MACHINE_INFO": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_SAVE_CODE": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_SYMLINK": "false",
}
"""Settings of W&B, as environment variables, by which it takes the figures and nothing else: by itself it also sends
the command line (which may name keys of an object store), the log, the machine and the user's code. A variable that
the user has set stays."""


# --- writing ----------------------------------------------------------------------------------------------------------


def check_online(config: LogConfig) -> None:
    """Check that the package of the asked service is installed; raises `ValueError` if not."""
    # It is going to be imported, so no other name may stand there.
    if config.online not in (None, *_SERVICES):
        raise ValueError(f"log.online is {config.online!r:.100}: it must be {' or '.join(_SERVICES)}")
    spec = importlib.util.find_spec(config.online) if config.online else None
    # A spec without an origin is no package but a folder of that name, as wandb leaves one in the working folder.
    if config.online and (spec is None or spec.origin is None):
        raise ValueError(
            f"log.online is {config.online}, and that package is not installed: pip install {config.online},"
            " or leave log.online out"
        )


class Sink(Protocol):
    """Place that figures are sent to."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the figures of a step."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class Tracker:
    """Writer of the figures of a run, on rank 0.

    Figures are means since the previous line. The first line after a resume covers fewer steps, since such sums are not
    in the checkpoints.

    Args:
        metrics: Path of `metrics.jsonl`. Lines after `step` were written by a training that was killed: they are cut.
        tensorboard: Folder for TensorBoard.
        config: Places to write to.
        step: Step from which the training goes on; 0 for a new one.
        name: Name of the run at the online service.
    """

    def __init__(self, metrics: Path, tensorboard: Path, config: LogConfig, step: int, name: str) -> None:
        check_online(config)
        cut(metrics, step)
        self._file = os.fdopen(open_own(metrics), "a", encoding="utf-8")
        self._sinks: list[Sink] = []
        if config.tensorboard:
            self._sinks.append(TensorBoard(tensorboard, step))
        if config.online:
            self._sinks.append(Online(config.online, config.project, name, metrics.parent))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the figures of a step to all places."""
        self._write({"step": step} | values)
        for sink in self._sinks:
            sink.log(step, values)

    def skipped(self, step: int, what: str, keys: Sequence[str]) -> None:
        """Write a skipped step and its samples to `metrics.jsonl`."""
        self._write({"step": step, "event": "skipped", "what": what, "keys": list(keys)})

    def close(self) -> None:
        """Close all places."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN; Python would write one that other readers refuse.
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
        self._file.write(json.dumps(line) + "\n")
        # At once, so that the overview and a killed training have every line.
        self._file.flush()


class TensorBoard:
    """TensorBoard's event files; a viewer hides what an earlier, killed training wrote after the step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one scalar for each figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Online:
    """Online service: wandb or trackio, which has wandb's interface. A resumed run goes on under its name."""

    def __init__(self, package: str, project: str, name: str, folder: Path) -> None:
        assert package in _SERVICES
        if package == "wandb":
            for variable, value in _ONLY_FIGURES.items():
                os.environ.setdefault(variable, value)
        self._package = importlib.import_module(package)
        # trackio identifies a run by its name, and keeps its files in the cache of the user.
        only_wandb = {"id": name, "dir": str(folder)} if package == "wandb" else {}
        self._package.init(project=project, name=name, resume="allow", **only_wandb)
        if package == "wandb":
            # Figures of a validation come late, and wandb drops what is older than its own step: make `step` the axis.
            self._package.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the figures."""
        if self._package.__name__ == "wandb":
            self._package.log({"step": step} | values)
        else:
            self._package.log(values, step=step)

    def close(self) -> None:
        """Send what is left and end the session."""
        self._package.finish()


def cut(metrics: Path, step: int) -> None:
    """Drop lines after a step, a last line that a killed writer left unfinished, and damaged ones.

    The file is replaced as a whole.
    """
    if not metrics.exists():
        return
    kept: list[bytes] = []
    damaged = 0
    # What follows the last line break was never finished.
    for line in _lines(metrics):
        if line.strip() and line.endswith(b"\n"):
            row = parse_line(line)
            damaged += row is None
            if row is not None and row["step"] <= step:
                kept.append(line)
    if damaged:
        log.warning("%d lines of %s cannot be read and are dropped", damaged, metrics)
    write_whole(metrics, b"".join(kept))


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of one figure over the steps."""

    steps: np.ndarray
    """Steps, `[N]`, ascending."""
    values: np.ndarray
    """Values, `[N]`; NaN where a value was not finite."""

    @property
    def last(self) -> float | None:
        """Newest finite value; None without any."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else None


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Step that was skipped because its loss or gradient was not finite."""

    step: int
    what: str
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures that a training has logged so far."""

    training: dict[str, Curve] = field(default_factory=dict)
    """Name → curve, `loss` first."""
    validation: dict[str, Curve] = field(default_factory=dict)
    """Name without `validation/` → curve."""
    skips: tuple[Skip, ...] = ()
    step: int = 0
    """Newest step."""
    epoch: float | None = None
    damaged_lines: int = 0
    """Number of lines that cannot be read: one that a killed writer had begun, or those of a damaged file."""


def read_metrics(path: Path) -> Metrics:
    """Read a `metrics.jsonl`: one object on each line, with `step` and any figures; a missing file counts as empty.

    If a step has several values (a resumed run may repeat it), the last one counts.

    Raises:
        ValueError: It is too large, or no file.
    """
    if not path.exists():
        return Metrics()
    values: dict[str, dict[int, float]] = {}
    skips: list[Skip] = []
    damaged, newest, epoch = 0, 0, None
    # Collect name → step → value, so that a repeated step replaces its earlier values.
    for line in _lines(path):
        if not line.strip():
            continue
        row = parse_line(line)
        if row is None:
            damaged += 1
            continue
        step = row["step"]
        newest = max(newest, step)
        # Skipped steps and the epoch have fields of their own.
        if row.get("event") == "skipped":
            keys = row.get("keys")
            keys = tuple(map(str, keys)) if isinstance(keys, list) else ()
            skips.append(Skip(step=step, what=str(row.get("what", "")), keys=keys))
        if (share := _number(row.get("epoch"))) is not None:
            epoch = share
        # Everything else that is a number is a figure; null is left out.
        for name, value in row.items():
            known = name in values or len(values) < MOST_FIGURES
            if known and name not in _NOT_FIGURES and (figure := _number(value)) is not None:
                values.setdefault(name, {})[step] = figure
    # Sort into curves of the training, `loss` first, and of the validations.
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


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Object of a line of `metrics.jsonl`; None when the line is damaged."""
    try:
        row = parse_json(line, "the line")
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and 0 <= step < _MOST_STEPS else None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file with their line breaks; one that is too long comes in parts, which are damaged lines then."""
    with open_regular(path) as stream:
        refuse_large(str(path), os.fstat(stream.fileno()).st_size, _FILE_BYTES, "file of figures")
        while line := stream.readline(_LINE_BYTES):
            yield line


def _number(value: Any) -> float | None:
    """Value of a figure, NaN where it is not finite; None for what is no number. In Python a bool is an int, too."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) else math.nan
    except OverflowError:  # an integer beyond all floating-point numbers
        return math.nan


def _curve(points: dict[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(steps=np.array(steps), values=np.array([points[step] for step in steps], dtype=np.float64))
