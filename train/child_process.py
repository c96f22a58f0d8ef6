"""Processes that a training starts and that must not outlive it: ranks and validations."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the kernel (Linux) end this process when its parent dies: a killed run leaves nothing behind.

    Args:
        parent: The process that started this one; when it is dead already, this one ends here.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
