"""Figures and events of a training: written to `metrics.jsonl`, and sent on (`train.run.sinks`); and read.

A line of `metrics.jsonl` is an object with `step` (updates done, from 1) and figures; those of a validation have names
that begin with `validation/`. A figure that is NaN or infinite is null. A skipped step, and one that stood out, has a
line of its own with `event`, `what` and `keys`; a sample that was read in place of another one has one with `event`,
`slot` and both keys.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import open_own, open_regular, parse_json, refuse_large
from train.run.previews import media_in
from train.run.sinks import VALIDATION, Sink

log = logging.getLogger(__name__)

MOST_FIGURES = 300
"""Number of figures that are read, those that come first: each makes a plot."""
_NOT_FIGURES = ("step", "epoch", "event")
_FILE_BYTES = 256 << 20  # a line has some 300 bytes, so this is a million of them
_LINE_BYTES = 1 << 20
_MOST_STEPS = 1 << 53
_TEXT = 1000  # most characters of a text of an event


# --- writing ----------------------------------------------------------------------------------------------------------


class Tracker:
    """Writer of the figures of a run, on rank 0.

    Figures are means since the previous line. The first line after a resume covers fewer steps, since such sums are not
    in the checkpoints.

    Args:
        metrics: Path of `metrics.jsonl`. Lines after `step` were written by a training that was killed: they are cut.
        step: Step from which the training goes on; 0 for a new one.
        sinks: Further places that get the figures.
    """

    def __init__(self, metrics: Path, step: int, sinks: Sequence[Sink] = ()) -> None:
        cut(metrics, step)
        self._file = os.fdopen(open_own(metrics), "a", encoding="utf-8")
        self._sinks = tuple(sinks)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the figures of a step to all places."""
        self._write({"step": step} | values)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for sink in self._sinks:
            sink.log(step, finite)

    def show(self, step: int, folder: Path) -> None:
        """Send the images and videos of a validation that is done to all other places.

        A file that cannot be read ends no training.

        Args:
            step: Step that was validated.
            folder: Folder of the validation.
        """
        try:
            media = media_in(folder) if self._sinks else []
            for sink in self._sinks:
                sink.show(step, media)
        except (ValueError, OSError) as error:
            log.warning("images and videos of the validation of step %d are not all shown: %s", step, error)

    def skipped(self, step: int, what: str, keys: Sequence[str]) -> None:
        """Write a skipped step and its samples to `metrics.jsonl`."""
        self._write({"step": step, "event": "skipped", "what": what, "keys": list(keys)})

    def damaged(self, step: int, folder: str, defect: str) -> None:
        """Write to `metrics.jsonl` that a damaged checkpoint was passed over.

        Args:
            step: Step from which the training goes on instead.
            folder: Name that its folder has now, in RUN/checkpoints.
            defect: What is wrong with which file.
        """
        self._write({"step": step, "event": "damaged", "folder": folder, "defect": defect})

    def alarm(self, step: int, what: str, keys: Sequence[str]) -> None:
        """Write a step that stood out, and its samples, to `metrics.jsonl`."""
        self._write({"step": step, "event": "alarm", "what": what, "keys": list(keys)})

    def replaced(self, replaced: Replaced) -> None:
        """Write to `metrics.jsonl` that a sample was read in place of another one."""
        about = asdict(replaced)
        self._write({"step": about.pop("step"), "event": "replaced"} | about)

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
    """Step that was skipped, because its loss or gradient was not finite or far too large."""

    step: int
    what: str
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Step whose loss or gradient norm was far above the running median."""

    step: int
    what: str
    keys: tuple[str, ...]
    """Keys of its samples, those with the largest loss first."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Checkpoint that a start found damaged, and passed over."""

    step: int
    """Step from which the training went on instead."""
    folder: str
    """Name of its folder in RUN/checkpoints since then."""
    defect: str


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Sample that a step learnt from in place of another one, which could not be read."""

    step: int
    slot: int
    key: str
    """Key of the one that could not be read."""
    replacement: str
    """Key of the one that was read."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures that a training has logged so far."""

    training: dict[str, Curve] = field(default_factory=dict)
    """Name → curve, `loss` first."""
    validation: dict[str, Curve] = field(default_factory=dict)
    """Name without `validation/` → curve."""
    skips: tuple[Skip, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    damages: tuple[Damage, ...] = ()
    replaced: tuple[Replaced, ...] = ()
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
    alarms: list[Alarm] = []
    replaced: list[Replaced] = []
    damages: list[Damage] = []
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
        # Events and the epoch have fields of their own.
        if row.get("event") == "skipped":
            skips.append(Skip(step=step, what=str(row.get("what", "")), keys=_keys(row)))
        elif row.get("event") == "alarm":
            alarms.append(Alarm(step=step, what=str(row.get("what", ""))[:_TEXT], keys=_keys(row)))
        elif row.get("event") == "damaged":
            texts = (str(row.get(name, ""))[:_TEXT] for name in ("folder", "defect"))
            damages.append(Damage(step=step, folder=next(texts), defect=next(texts)))
        elif row.get("event") == "replaced" and _is_count(row.get("slot")):
            about = {name: str(row.get(name, ""))[:_TEXT] for name in ("key", "replacement", "reason")}
            replaced.append(Replaced(step=step, slot=row["slot"], **about))
            continue  # its slot is no figure
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
        alarms=tuple(alarms),
        replaced=tuple(replaced),
        damages=tuple(damages),
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
    return row if isinstance(row, dict) and _is_count(row.get("step")) else None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file with their line breaks; one that is too long comes in parts, which are damaged lines then."""
    with open_regular(path) as stream:
        refuse_large(str(path), os.fstat(stream.fileno()).st_size, _FILE_BYTES, "file of figures")
        while line := stream.readline(_LINE_BYTES):
            yield line


def _keys(row: dict[str, Any]) -> tuple[str, ...]:
    keys = row.get("keys")
    return tuple(map(str, keys)) if isinstance(keys, list) else ()


def _is_count(value: Any) -> bool:
    """Whether a value can be the number of a step or slot."""
    return type(value) is int and 0 <= value < _MOST_STEPS


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
