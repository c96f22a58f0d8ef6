"""Fair timing: competitors take turns, one core each, and the median of their turns counts; and a busy neighbour."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from orchestration import ROOT
from orchestration.cluster import WORKER_VARIABLES

# It ends by itself when the bench is killed.
_NEIGHBOUR = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


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


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process computes all the time, on whichever core it gets."""
    with subprocess.Popen([sys.executable, "-S", "-c", _NEIGHBOUR, str(os.getpid())]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


def measured_apart(module: str, *arguments: str, threads: bool = False) -> Any:
    """What `python -m module …` prints as its last line, JSON.

    Args:
        module: What to run.
        arguments: Its arguments.
        threads: Whether it computes on as many threads as for a user, not on one.

    Raises:
        ValueError: It failed; with the end of what it said.
    """
    environment = {name: value for name, value in os.environ.items() if not threads or name not in WORKER_VARIABLES}
    command = ["-m", module, *arguments]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr[-2000:].strip()}")
    return json.loads(done.stdout.splitlines()[-1])


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
