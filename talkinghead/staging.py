"""Files and folders that appear whole or not at all, beside whatever the user keeps in the same place.

For results that are written piece by piece (a video, a folder of weights). What is at hand as bytes goes through
`talkinghead.whole_writes`, the files of a data set through `talkinghead.storage`.

A result is made under a hidden name in its own folder, flushed to the disk, and renamed. Who makes it holds a lock on
the hidden one, so a later writer of the same result knows what killed writers left, and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from talkinghead.whole_writes import sync

_SUFFIX = ".part"


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A scratch file in the same folder, which replaces `path` when the block ends without an error.

    After an error (an interrupt too) the scratch file is removed and `path` is as it was. The block writes into the
    file that is there rather than putting another in its place.

    Raises:
        ValueError: `path` is a folder, or lies in a file.
        OSError: The folder cannot be written to, or is full.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file is to be written there: give it a file name")
    _prepare_parent(path)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_SUFFIX, dir=path.parent)
    scratch = Path(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, 0o666 & ~_umask())  # scratch files are private; results are not
        yield scratch
        os.fsync(descriptor)
        scratch.replace(path)
    finally:
        os.close(descriptor)
        scratch.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """An empty scratch folder beside `path`, which becomes `path` when the block ends without an error.

    Raises:
        ValueError: `path` is there already and is not an empty folder.
        OSError: The folder above cannot be written to, or is full.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already: give another name, or remove it first")
    _prepare_parent(path)
    scratch = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_SUFFIX, dir=path.parent))
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        scratch.chmod(0o777 & ~_umask())
        yield scratch
        for entry in scratch.rglob("*"):
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())  # some libraries make their files private
            sync(entry)
        os.fsync(descriptor)
        scratch.replace(path)
    finally:
        os.close(descriptor)
        shutil.rmtree(scratch, ignore_errors=True)
    sync(path.parent)


def check_writable(path: Path) -> None:
    """Find out now whether `path` can be staged, rather than after the work that makes it. Leaves nothing behind.

    Raises:
        ValueError: `path` is a folder, or lies in a file.
        OSError: The folder cannot be written to; says which.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file is to be written there: give it a file name")
    folder = path.parent
    try:
        while not folder.exists():  # it will be made in the nearest one that is there
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(f"{path} cannot be written: {folder} is a file, not a folder")
        with tempfile.NamedTemporaryFile(prefix=_prefix(path), suffix=_SUFFIX, dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {folder}: {error.strerror or error}") from error


def _prefix(path: Path) -> str:
    return f".{path.name}-"


def _prepare_parent(path: Path) -> None:
    """Make the folder above, and remove what killed writers of `path` left there: what nobody holds a lock on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be written: {error.filename} is a file, not a folder") from error
    for entry in path.parent.iterdir():
        if not (entry.name.startswith(_prefix(path)) and entry.name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError, BlockingIOError):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            finally:
                os.close(descriptor)


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
