"""Fair timing: competitors take turns, one core each, and the median of their turns counts."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orchestration.cluster import WORKER_VARIABLES


@dataclass(frozen=True)
class Cost:
    """What one turn took, seconds."""

    wall: float
    cpu: float
    """CPU time of this process and all its threads."""


def pin_threads() -> None:
    """One thread for every numerical library, here and in child processes. Before those libraries are imported."""
    os.environ.update(WORKER_VARIABLES)


@contextlib.contextmanager
def library_output_in(log: Path) -> Iterator[TextIO]:
    """Send what libraries and child processes print to a file; yield the terminal's stderr."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as terminal, log.open("wb") as sink:
        output = os.dup(1)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os.dup2(output, 1)
            os.dup2(terminal.fileno(), 2)
            os.close(output)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Run this process, and the threads and children it starts, on one core only (where the system allows to)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(run: Callable[[], object]) -> Cost:
    """The cost of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(competitors: Mapping[str, Callable[[int], object]], repeats: int) -> dict[str, Cost]:
    """Let each competitor run once per round, called with the round's number, and take the medians over the rounds.

    What slows the machine down for a while then slows all of them.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in competitors}
    for turn in range(repeats):
        for name, run in competitors.items():
            costs[name].append(measure(lambda run=run, turn=turn: run(turn)))
    return {
        name: Cost(statistics.median(cost.wall for cost in turns), statistics.median(cost.cpu for cost in turns))
        for name, turns in costs.items()
    }
