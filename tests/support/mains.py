"""Files and places on which reading, writing and waiting fail for real, for every `python -m …`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.paths import ROOT

UNREADABLE = Path("/proc/self/mem")
"""A regular file whose first byte is mapped nowhere: reading it is an I/O error (EIO), as on a failing disk."""


def make_unreadable(path: Path) -> Path:
    """Let a file of this name fail with EIO when it is read."""
    if not UNREADABLE.exists():
        pytest.skip(f"needs {UNREADABLE}, whose reading fails")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(UNREADABLE)
    return path


def interrupted(
    arguments: list[str],
    there: Callable[[], object],
    number: int,
    *,
    blocked: bool = False,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str, str]:
    """Start `python -m …`, send it a signal when it has come so far, and wait for its end.

    Args:
        arguments: After `-m`.
        there: Whether it is where it is to be interrupted.
        number: The signal.
        blocked: There it waits in a system call. A signal just before that call would be seen only after it.
        env: Added to the environment.

    Returns:
        Exit status, stdout, stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(env or {}),
        # A shell in the background starts its commands with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not there() or (blocked and not _sleeps(process.pid)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def _sleeps(process: int) -> bool:
    """Whether a process sleeps, checked twice, so that it is not just about to go on."""
    states = []
    for _ in range(2):
        states.append(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0])
        time.sleep(0.05)
    return states == ["S", "S"]


@contextlib.contextmanager
def reader_of(fifo: Path) -> Iterator[Callable[[], bool]]:
    """Make a named pipe; yields a function that tells whether a process reads it and so waits until the block ends."""
    os.mkfifo(fifo)
    held: list[int] = []

    def reads() -> bool:
        if not held:
            with contextlib.suppress(OSError):  # nobody reads yet
                held.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(held)

    try:
        yield reads
    finally:
        for descriptor in held:
            os.close(descriptor)
