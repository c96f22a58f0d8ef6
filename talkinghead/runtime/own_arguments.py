"""Credentials in this process's own command line, which all users of the machine can read: taken out, and refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from talkinghead.files.uri import holds_credentials, refuse_credentials

_PROCESS = Path("/proc/self")
# Numbers of the fields of /proc/self/stat after the program's name, see proc(5).
_ARGUMENTS_START, _ARGUMENTS_END = 48 - 3, 49 - 3


def without_own_credentials(arguments: Sequence[str]) -> None:
    """Blank credentials in this process's command line, and refuse them in the arguments that it was started with.

    Args:
        arguments: What is left of the command line in Python, such as `sys.argv`.

    Raises:
        ValueError: There are some; the message says where they belong.
    """
    blank_credentials()
    refuse_credentials(arguments)


def blank_credentials() -> None:
    """Overwrite the credentials in what the kernel shows as this process's command line.

    Also in what Ray copies from there into the table of a cluster's jobs. `sys.argv` keeps them. Where the kernel does
    not allow it, nothing happens: the command lines of `make` and of the shell have shown them already.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        shown = (_PROCESS / "cmdline").read_bytes()
        blanked = b"\0".join(map(_blanked, shown.split(b"\0")))
        if blanked == shown:
            return
        fields = (_PROCESS / "stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
        # The kernel checks the place, so that a wrong one is an error and not a crash.
        with (_PROCESS / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(blanked[: end - start])


def _blanked(argument: bytes) -> bytes:
    """An argument of the same length, without what follows its first `://` if there are credentials in it."""
    if not holds_credentials(os.fsdecode(argument)):
        return argument
    kept = argument.index(b"://") + len(b"://")
    return argument[:kept] + b"*" * (len(argument) - kept)
