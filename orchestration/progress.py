"""Progress of a job on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 10.0


class Progress:
    """Counts finished units of one job."""

    def __init__(self, job: str, total: int, done: int) -> None:
        self.job = job
        self.total = total
        self.done = self.done_before = done
        self.frames = 0
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
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
