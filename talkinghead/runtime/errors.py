"""Whose fault an error is, the machine's or what was asked for, and what it says. Commands, workers and ranks ask here.

The machine is its disks and mounts, its memory, its network and the stores behind it. What fails there may succeed when
it is mended: a command ends with status 1 and can be run again, and a worker stops its job. It never counts against an
input, which would be quarantined for nothing.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

_REASONS = {
    # The disk, and what may be written to it.
    "ENOSPC": "the disk is full",
    "EDQUOT": "the user's share of the disk is used up",
    "EROFS": "mounted read-only, which a disk with faults becomes by itself",
    "EFBIG": "larger than the file system, or a limit of the process, allows",
    "EIO": "the disk or the mount fails; where a bad sector hits one input, the next run meets it again and names it",
    "EUCLEAN": "the file system is damaged",
    "ENODEV": "the device is gone",
    "ENXIO": "the device is gone",
    "ENOMEDIUM": "the device holds no disk",
    # Mounts over the network, or served by another process (FUSE).
    "ESTALE": "the file server has started anew and no longer knows the file",
    "ENOTCONN": "the process that serves the mount has died",
    "ESHUTDOWN": "the mount is being taken away",
    "ETIMEDOUT": "the file server does not answer",
    "EREMOTEIO": "the file server's own disk fails",
    "ENOLCK": "the file server gives no locks",
    "EHOSTDOWN": "the file server is down",
    "EHOSTUNREACH": "no way to the file server",
    "ENETDOWN": "the network is down",
    "ENETUNREACH": "no way into that network",
    # What all processes of the machine share.
    "ENOMEM": "the system has no memory left (a process that reached its own limit gets a MemoryError instead)",
    "EMFILE": "this process holds as many open files as it may",
    "ENFILE": "all processes together do",
}
"""Name of an error number → why it is the machine's.

Not among them: ECONNREFUSED (a wrong address: what was asked for is not there), EACCES and EPERM (a wrong place), and
EAGAIN (FFmpeg's, for "more data, please")."""

MACHINE_ERRORS = frozenset(getattr(errno, name) for name in _REASONS if hasattr(errno, name))
"""The numbers of these errors, as far as this system has them."""


class MachineError(Exception):
    """The machine is at fault, not what was asked for; the message says what to mend."""


class UnreachableError(MachineError, OSError):
    """A store or a server that does not answer, or refuses: never an input's fault. The message names no secret."""


@contextlib.contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Let errors of the operating system name the file they are about; those of reading and writing name none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def error_text(error: BaseException) -> str:
    """What an error says to people: the operating system's with the file they are about, and without their number."""
    if isinstance(error, OSError):
        return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    return str(error)


def is_machine_error(error: BaseException) -> bool:
    """Whether the machine is at fault, rather than what was asked for.

    An error that explains another one (`raise … from error`) is of its kind: a portrait that "cannot be read" because
    the mount is gone is the mount's fault.

    A `MemoryError` is nobody's by itself: to a command it is the machine's, but a worker has a limit of its own, and
    there the input may be too large.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MachineError):
            return True
        if isinstance(cause, OSError) and cause.errno in MACHINE_ERRORS and not _made_up(cause):
            return True
        cause = cause.__cause__
    return False


def _made_up(error: OSError) -> bool:
    """FFmpeg's demuxers say EIO of files that end early: without the system's word for it, that is the file's fault."""
    av = sys.modules.get("av.error")
    return av is not None and isinstance(error, av.FFmpegError) and error.errno == errno.EIO
