"""Fair timing: competitors take turns on one core, and the median of their turns counts; and a busy neighbour."""

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

# Program of the busy neighbour. It ends by itself when the bench is killed, because its parent is another process then.
_NEIGHBOUR = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class Cost:
    """Time that one turn took, in seconds."""

    wall: float
    """Wall time."""
    cpu: float
    """CPU time of this process and all its threads."""


def pin_threads() -> None:
    """Limit every numerical library to one thread, here and in child processes.

    Call it before those libraries are imported, which is when they read these variables.
    """
    os.environ.update(WORKER_VARIABLES)


@contextlib.contextmanager
def library_output_in(log: Path) -> Iterator[TextIO]:
    """Redirect what libraries and child processes print to a file; yields a stream to the terminal's stderr."""
    # C++ libraries print to the file descriptors, not to sys.stderr: these are what is redirected.
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
    """Keep this process, and the threads and children that it starts, on one core (on systems that can)."""
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
    """Let another process compute all the time within the block, on any core."""
    # -S: without site-packages it starts at once.
    with subprocess.Popen([sys.executable, "-S", "-c", _NEIGHBOUR, str(os.getpid())]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


def measured_apart(module: str, *arguments: str, threads: bool = False) -> Any:
    """Run `python -m module …` and parse the last line that it prints, as JSON.

    Args:
        module: Module to run.
        arguments: Arguments of the module.
        threads: Whether to compute on as many threads as for a user, instead of one.

    Raises:
        ValueError: It failed; the message ends with its stderr.
    """
    # The bench itself is pinned to one thread: for more, its children must not inherit that.
    environment = {name: value for name, value in os.environ.items() if not threads or name not in WORKER_VARIABLES}
    command = ["-m", module, *arguments]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr[-2000:].strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(call: Callable[[], object]) -> Cost:
    """Measure the cost of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(competitors: Mapping[str, Callable[[int], object]], repeats: int) -> dict[str, Cost]:
    """Measure competitors in turns, one call of each per round, and take the medians over the rounds.

    A machine that is slow for a while then slows all of them.

    Args:
        competitors: Name → function, called with the number of the round.
        repeats: Number of rounds.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in competitors}
    for turn in range(repeats):
        for name, compute in competitors.items():
            costs[name].append(measure(lambda compute=compute, turn=turn: compute(turn)))
    return {
        name: Cost(statistics.median(cost.wall for cost in turns), statistics.median(cost.cpu for cost in turns))
        for name, turns in costs.items()
    }
