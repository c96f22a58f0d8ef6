"""Files and folders that stand whole or not at all, through kills and power cuts, on a local or shared file system.

For what is at hand as bytes, and for folders that replace one another. A single result that is written piece by piece
beside the user's own files goes through `talkinghead.staging`, the files of a data set through `talkinghead.storage`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import uuid
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file as a whole; its content is on the disk when this returns.

    A writer that is killed leaves at most a hidden `.<name>.tmp-<random>`; one that fails leaves nothing.

    Args:
        path: The file; folders above it are made.
        data: Its whole content.

    Raises:
        OSError: The folder cannot be written, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def temporary_folder(target: Path) -> Path:
    """A new empty folder beside `target`, to be filled and given to `commit_folder`."""
    folder = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    folder.mkdir(parents=True)
    return folder


def commit_folder(folder: Path, target: Path) -> None:
    """Make a filled temporary folder stand as `target`, in place of what stood there."""
    sync_tree(folder)
    if target.exists() and not _exchange(folder, target):
        # No file system call for it here: for a moment, and if just then the power goes, there is no `target`.
        old = temporary_folder(target)
        target.rename(old / target.name)
        folder.rename(target)
        folder = old
    elif not target.exists():
        folder.rename(target)
    sync(target.parent)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left directly in a folder. Only when no writer runs."""
    for leftover in folder.glob(".*.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Bring all files below a folder to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Bring a folder's list of names, or a file, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0
