"""Files and places on which reading, writing and waiting fail for real, for every `python -m …`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
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
    env: Mapping[str, str] | None = None,
) -> tuple[int, str, str]:
    """Start `python -m …`, send it a signal when it has come so far, and wait for its end.

    Args:
        arguments: After `-m`.
        there: Whether it is where it is to be interrupted.
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
        deadline = time.monotonic() + 240
        while not there():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


_HELD = """\
import os, sys, time

def hold(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        if os.path.basename(os.fsdecode(arguments[0])) == os.environ["HELD_FILE"]:
            os.close(os.open(os.environ["HELD_MARKER"], os.O_CREAT | os.O_WRONLY))
            while True:
                time.sleep(600)

sys.addaudithook(hold)
"""
"""Module that Python imports at its start: opening the file never ends, as on a mount whose server is gone."""


@contextlib.contextmanager
def file_that_never_opens(path: Path) -> Iterator[tuple[Callable[[], bool], dict[str, str]]]:
    """Make a file whose opening never ends in processes with a certain environment.

    Yields:
        A function that tells whether such a process is opening it, and that environment.
    """
    path.touch()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(_HELD)
        marker = Path(folder) / "opening"
        places = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        yield marker.exists, {"PYTHONPATH": places, "HELD_FILE": path.name, "HELD_MARKER": str(marker)}
