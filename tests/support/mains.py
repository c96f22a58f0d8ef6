"""Files and places on which reading, writing and waiting fail for real, for every `python -m …`."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
    arguments: list[str], waits: Callable[[], object], number: int, *, env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Start `python -m …`, send it a signal as soon as it waits, and see it end.

    Args:
        arguments: After `-m`.
        waits: Whether it is where it is to be interrupted.
        number: The signal.
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
        while not waits():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def reader_of(fifo: Path) -> Callable[[], bool]:
    """Says whether somebody reads a named pipe, who then waits for its first byte."""
    os.mkfifo(fifo)
    held: list[int] = []

    def waits() -> bool:
        try:
            held.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise
        return bool(held)

    return waits
