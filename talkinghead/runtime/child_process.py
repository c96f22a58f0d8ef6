"""Ends child processes with the one that started them: units in a process of their own, ranks, validations."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Let the kernel (Linux) kill this process when its parent dies: a hung unit must not outlive a killed worker."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, and end it now if the parent is dead already.

    Args:
        parent: Process number of the one that started this process.
    """
    end_with_parent()
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
