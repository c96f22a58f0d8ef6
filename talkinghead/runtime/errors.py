"""Decides for commands, workers and ranks whether an error is the machine's fault or the request's, and gives its text.

The machine means its disks and mounts, its memory, its network and the stores that it reaches. Work that fails there
may succeed when the machine is mended: a command ends with status 1 and can be run again, and a worker stops its job.
Such an error never counts against an input, which would be quarantined for nothing.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_REASONS = {
    # The disk, and what may be written to it.
    "ENOSPC": "the disk is full",
    "EDQUOT": "the user's share of the disk is used up",
    "EROFS": "mounted read-only, which a disk with faults becomes by itself",
    "EFBIG": "larger than the file system, or a limit of the process, allows",
    "EIO": "the disk or the mount fails; where a bad sector hits one input, the next try fails again and names it",
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
"""Name of an error number → why it is the machine's fault.

Left out: ECONNREFUSED (a wrong address in the request), EACCES and EPERM (a wrong place), and EAGAIN (FFmpeg raises it
to ask for more data)."""

MACHINE_ERRORS = frozenset(getattr(errno, name) for name in _REASONS if hasattr(errno, name))
"""Numbers of the machine's errors, as far as this system has them."""
FULL_DISK = frozenset((errno.ENOSPC, errno.EDQUOT))
"""Numbers of the errors of a disk without space."""


class MachineError(Exception):
    """Error of the machine, not of the request; the message says what to mend."""


class UnreachableError(MachineError, OSError):
    """Error of a store or a server that does not answer or refuses; never an input's fault. It names no secret."""


@contextlib.contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Add the file's name to errors of the operating system: those of opening have it, those of reading do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def error_text(error: BaseException) -> str:
    """Text of an error for people; the operating system's errors with their file, and without their number."""
    if isinstance(error, OSError):
        file = f"{one_line(str(error.filename))}: " if error.filename else ""
        return file + (error.strerror or str(error))
    return str(error)


# All that a terminal obeys (C0 without tab and newline, DEL, C1), and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_BREAKS = re.compile("[\t\n\u2028\u2029]")


def printable(text: str) -> str:
    """A text of several lines for a terminal, its control characters as escapes (`\\x1b`).

    Names of files and messages about them may be a stranger's: on a terminal they could hide or fake other lines.
    """
    return _CONTROLS.sub(_escaped, text)


def one_line(name: str) -> str:
    """A name for a message: like `printable`, and line breaks as escapes too, so that it cannot fake further lines."""
    return _LINE_BREAKS.sub(_escaped, printable(name))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def is_full_disk(error: BaseException) -> bool:
    """Whether a disk is full, or the user's share of it: no further try mends that."""
    return any(isinstance(cause, OSError) and cause.errno in FULL_DISK for cause in _causes(error))


def is_machine_error(error: BaseException) -> bool:
    """Whether the machine is at fault, rather than the request.

    An error that explains another one (`raise … from error`) is of that one's kind: a portrait that "cannot be read"
    because the mount is gone is the mount's fault.

    A `MemoryError` does not count here: in a command it is the machine's fault, but a worker has a limit of its own,
    and there the input may be too large.
    """
    for cause in _causes(error):
        if isinstance(cause, MachineError):
            return True
        if isinstance(cause, OSError) and cause.errno in MACHINE_ERRORS and not _made_up(cause):
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what explains it; the context of `raise … from None` and of accidental errors does not count."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _made_up(error: OSError) -> bool:
    """Whether FFmpeg invented an EIO: its demuxers report one for files that end early, which is the file's fault."""
    # Without importing PyAV: a process that has not loaded it has no errors of FFmpeg.
    av = sys.modules.get("av.error")
    return av is not None and isinstance(error, av.FFmpegError) and error.errno == errno.EIO
