"""Progress of long work on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

FIRST_LINE_S = 2.0
"""When the first line comes: who waits wants to know early for how long."""
LINE_EVERY_S = 10.0


class Progress:
    """Follows several stages of one command, one after the other. Use it as a context manager."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Stage → wall time so far."""
        self._stage: str | None = None
        self._started = self._next_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
            self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close_stage()
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are finished. A stage begins with its first call, best with `done` 0."""
        now = time.monotonic()
        if stage != self._stage:
            self._close_stage()
            self._stage, self._started, self._next_line = stage, now, now + FIRST_LINE_S
            if self._bar:
                self._task = self._bar.add_task(stage, total=total)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif 0 < done < total and now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            left = (now - self._started) / done * (total - done)
            print(f"{stage}: {done}/{total}, about {duration(left)} left", file=sys.stderr, flush=True)

    def _close_stage(self) -> None:
        if self._stage is not None:
            spent = time.monotonic() - self._started
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
            self._stage = None


def duration(seconds: float) -> str:
    """As people say it: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class UnitProgress:
    """Counts finished units of one job."""

    def __init__(self, job: str, total: int, done: int) -> None:
        self.job = job
        self.total = total
        self.done = self.done_before = done
        self.frames = 0
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> UnitProgress:
        if sys.stderr.isatty():
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = RichProgress(*columns, *times, console=Console(stderr=True))
            self._task = self._bar.add_task(self.job, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, frames: int) -> None:
        """One more unit is finished and put out `frames` frames."""
        self.done += 1
        self.frames += frames
        now = time.monotonic()
        elapsed = now - self._started
        rate = f"{self.frames / elapsed:.0f} frames/s" if self.frames and elapsed > 0 else ""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            left = elapsed / (self.done - self.done_before) * (self.total - self.done)
            print(f"{self.job}: {self.done}/{self.total} {rate}, about {left:.0f} s left", file=sys.stderr, flush=True)
