"""The lock of the one process that may write into a folder: who may only read the folder can neither take nor hold it.

It is a record lock (POSIX) on a file in the folder. It belongs to a process: the kernel drops it when the process dies,
child processes do not inherit it, and it works between machines, on any shared file system that has locks of files. The
kernel also drops it when the process closes the file anywhere, so nothing but this module may open it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from talkinghead.files.foreign import open_own

_HOLDER = re.compile(r"process \d{1,10} on [\w.:-]{1,255}")
_TRY_AGAIN_S = 0.1

_guard = threading.Lock()
_held: set[tuple[int, int]] = set()
"""Device and number of the files that this process has locked: the kernel lets a process lock a file again."""
os.register_at_fork(after_in_child=_held.clear)


class LockedError(ValueError):
    """Another process holds a lock; `holder` says which, and is empty where that is not known."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message, holder)
        self.holder = holder

    def __str__(self) -> str:
        return self.args[0]


@contextlib.contextmanager
def folder_lock(path: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a folder's lock for the block.

    Args:
        path: The lock's file, directly in the folder. It names its holder, and stays when the block has ended.
        patience_s: Time to wait for another holder to end, in seconds.

    Raises:
        LockedError: Another process, or another block of this one, holds it.
        LinkError: The file is a link.
        ValueError: It is something else than a lock of ours, which is left as it is.
        OSError: It cannot be opened, made or locked.
    """
    deadline = time.monotonic() + patience_s
    while isinstance(taken := _take(path), str):
        if time.monotonic() >= deadline:
            raise LockedError(f"{path} is locked by another process" + (f" ({taken})" if taken else ""), taken)
        time.sleep(_TRY_AGAIN_S)
    try:
        # For the error of another process that finds the lock taken.
        os.ftruncate(taken, 0)
        os.pwrite(taken, _this_process().encode(), 0)
        yield
    finally:
        with _guard:
            _held.discard(_identity(os.fstat(taken)))
            os.close(taken)


def _take(path: Path) -> int | str:
    """Try once; returns the open and locked file, or who holds the lock."""
    with _guard:
        # Opening and closing the file once more would drop the lock that this process holds.
        with contextlib.suppress(FileNotFoundError):
            if _identity(path.lstat()) in _held:
                return _this_process()
        # Private at first: nobody may open it before its permissions are those that it shall have.
        descriptor = open_own(path, 0o600)
        try:
            holder = _holder(path, descriptor)
            _let_writers_in(path.parent, descriptor)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
                return holder
            _held.add(_identity(os.fstat(descriptor)))
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        return descriptor


def _holder(path: Path, descriptor: int) -> str:
    """The last holder's text about itself; raises `ValueError` for a file that is no lock of ours."""
    content = os.pread(descriptor, 1000, 0).decode(errors="replace")
    # With a second name it may be any file of the user's: what is ours has one.
    if os.fstat(descriptor).st_nlink > 1 or not (content == "" or _HOLDER.fullmatch(content)):
        raise ValueError(f"{path} is no lock of ours: put it elsewhere, and it will be made anew")
    return content


def _let_writers_in(folder: Path, descriptor: int) -> None:
    """Let those who may write into the folder open its lock, and nobody else: who can open it can hold it."""
    about, lock = folder.stat(), os.fstat(descriptor)
    if lock.st_uid != os.geteuid():
        return  # its owner has done so
    group = bool(about.st_mode & stat.S_IWGRP)
    if group and lock.st_gid != about.st_gid:
        try:
            os.chown(descriptor, -1, about.st_gid)
        except PermissionError:  # writers in it by other rights than the group's: their group is not asked
            group = False
    mode = 0o600 | (0o060 if group else 0) | (0o006 if about.st_mode & stat.S_IWOTH else 0)
    if stat.S_IMODE(lock.st_mode) != mode:
        with contextlib.suppress(OSError):  # a file system without permissions
            os.fchmod(descriptor, mode)


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
