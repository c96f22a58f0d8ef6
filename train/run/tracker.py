"""Where the figures of a training go: `metrics.jsonl` always, TensorBoard, and an online service if asked."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from talkinghead.files.atomic import write_whole
from train.config import LogConfig
from train.run.curves import parse_line

log = logging.getLogger(__name__)


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

    A line of `metrics.jsonl` is an object with `step` (updates done, from 1) and figures; those of a validation have
    names with `validation/`. One that is NaN or infinite is null. A skipped step has a line of its own: `event`,
    `what`, `keys`. Figures are means since the line before; the first line after a resume has fewer steps in it, since
    such sums are not in the checkpoints.

    Args:
        metrics: The `metrics.jsonl`. Lines behind `step` are of a training that was killed there: they are cut off.
        tensorboard: Folder for TensorBoard.
        config: What is wanted.
        step: The training goes on from here; 0 for a new one.
        name: Of the run, for the online service.
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
    """Event files; a viewer hides what an earlier, killed training wrote behind the step."""

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
            # Figures of a validation come late, and wandb drops what is behind its own step: `step` is the axis.
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
    """Drop lines behind a step, a last line that a killed writer left unfinished, and damaged ones.

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
