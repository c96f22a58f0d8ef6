"""Lock of a RUN: one training at a time, and none that would write through a stranger's links or wait for pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from talkinghead.files.foreign import entries_below, link_error, open_own, open_regular

LOCK = ".lock"
_WANDB = "wandb"
_HOLDER = re.compile(r"process \d+ on \S+", re.ASCII)
_HOLDER_BYTES = 1000


def refuse_strange(run: Path) -> None:
    """Refuse a RUN that holds what no training makes: links, which lead writes elsewhere, pipes and devices.

    Only W&B makes links, in a folder of its own, and into a new subfolder at each start; that is not looked into.

    Raises:
        ValueError: There is one; the message names it.
        OSError: A folder cannot be read.
    """
    own = f"{run / _WANDB}{os.sep}"
    for entry in entries_below(run) if run.is_dir() else ():
        if entry.path.startswith(own):
            continue
        if entry.is_symlink():
            raise link_error(Path(entry.path))
        if not entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):  # a training that runs has just removed it
                open_regular(Path(entry.path)).close()  # says what it is


@contextlib.contextmanager
def locked(run: Path, patience_s: float) -> Iterator[None]:
    """Context in which this process is the only training in a RUN.

    Args:
        run: Folder; must exist.
        patience_s: Seconds to wait for another training that is just ending.

    Raises:
        ValueError: Another training runs in it, or the lock's name belongs to a file that is no lock.
        OSError: The folder cannot be written.
    """
    # A record lock belongs to this process alone: its reading processes do not inherit it, and the kernel drops it when
    # the process dies. It also works between machines on a shared file system.
    deadline = time.monotonic() + patience_s
    try:
        descriptor = open_own(run / LOCK)
    except OSError as error:
        raise OSError(error.errno, f"cannot write to RUN {run}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+b") as handle:
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    who = _holder(run, handle.read(_HOLDER_BYTES))
                    raise ValueError(f"a training runs in {run} ({who}): wait for it or stop it") from None
                time.sleep(0.1)
        # For the error of another process that finds the lock taken. What is overwritten must be such a line.
        _holder(run, handle.read(_HOLDER_BYTES))
        handle.seek(0)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        handle.flush()
        yield


def _holder(run: Path, content: bytes) -> str:
    text = content.decode("utf-8", "replace").strip()
    if text and not _HOLDER.fullmatch(text):
        raise ValueError(f"{run / LOCK} is no lock of a training: move it elsewhere, or take another RUN")
    return text
