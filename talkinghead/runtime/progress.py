"""Progress of long work on stderr: on a terminal a bar with the time left, elsewhere a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from talkinghead.runtime.printable_stream import underlying

FIRST_LINE_S = 2.0
"""Seconds until the first line, which tells early how long the work will take."""
LINE_EVERY_S = 10.0
"""Seconds from one line to the next."""

ProgressCallback = Callable[[str, int, int], None]
"""Function that is called with a stage's name, its steps that are done, and their total. A `Progress` is one."""


class Progress:
    """Follows the stages of one command, one after the other. Use it as a context manager."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Stage → its wall time so far, seconds."""
        self._stage: str | None = None
        self._started = self._next_line = time.monotonic()
        self._share_before = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
            )
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            # Its own control characters have to reach the terminal.
            console = Console(file=underlying(sys.stderr))
            self._bar = RichProgress(*columns, *times, console=console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close_stage()
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int, *, frames: int = 0, share: float | None = None) -> None:
        """Report how far a stage is.

        Args:
            stage: Name of the stage. It begins with the first call that names it.
            done: Steps that are finished. The first call's steps were finished before and do not count in the speed.
            total: Total number of steps.
            frames: Frames that the stage has gone through so far, to show them and its speed in frames per second.
            share: Share of the stage's work that is done, 0 to 1, where steps differ in length or are halfway; by
                default that of its steps. The time left is worked out from it.
        """
        now = time.monotonic()
        share = done / max(1, total) if share is None else share
        # A new stage closes the one before.
        if stage != self._stage:
            self._close_stage()
            self._stage, self._started, self._next_line, self._share_before = stage, now, now + FIRST_LINE_S, share
            if self._bar:
                self._task = self._bar.add_task(stage, total=1.0, count="")
        # Show it: the bar at every call, lines by the clock and only where a time left can be estimated.
        elapsed = now - self._started
        speed = f"{frames:,} frames, {frames / elapsed:.0f} frames/s" if frames and elapsed > 0 else ""
        count = ", ".join(filter(None, (f"{done}/{total}", speed)))
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=share, count=count)
        elif self._share_before < share < 1 and now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            left = elapsed / (share - self._share_before) * (1 - share)
            print(f"{stage}: {count}, about {duration(left)} left", file=sys.stderr, flush=True)

    def _close_stage(self) -> None:
        """Add the stage's time to `seconds`; a stage may come several times."""
        if self._stage is not None:
            spent = time.monotonic() - self._started
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
            self._stage = None


def duration(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
