"""Processes that must not outlive the one that started them: units that run alone, ranks, validations."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel (Linux) end this process when its parent dies: a hung unit must not outlive a killed worker."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with(parent: int) -> None:
    """As `end_with_parent`, for a process that knows its parent's number: a killed run leaves nothing behind.

    Args:
        parent: The process that started this one; when it is dead already, this one ends here.
    """
    end_with_parent()
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
