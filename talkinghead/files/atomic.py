"""Files and folders that are written whole or not at all, through kills and power cuts, on local or shared disks.

Each is written under a temporary name next to its own, flushed to the disk, and renamed. There are two kinds:

    write_whole, temporary_folder with commit_folder    bytes at hand, and folders that replace one another, in a place
                                                        with one writer; `sweep` removes leftovers of killed ones
    staged_file, staged_folder                          a single result that is written piece by piece next to the
                                                        user's own files, where others may write too; leftovers of
                                                        killed writers are known by a lock that no process holds

A leftover is removed only if its name has the exact form that is made here, and if it is no link. A link that has the
name of a result is replaced by it; what it leads to stays. The files of a data set go through
`talkinghead.files.storage`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY_NAME = re.compile(r"\..+\.tmp-(?:[0-9a-f]{8}|removed)", re.DOTALL)  # "removed": an old checkpoint
_STAGED_SUFFIX = ".part"
_STAGED_CHOICE = "[a-z0-9_]{8}"  # what `tempfile` puts between prefix and suffix
_AT_FDCWD = -100  # Linux: paths count from the working folder
_RENAME_EXCHANGE = 2  # Linux: flag of renameat2


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file as a whole; its content is on the disk when this returns.

    A writer that is killed leaves at most a hidden `.<name>.tmp-<random>`; one that fails leaves nothing.

    Args:
        path: File to write; folders above it are made.
        data: Whole content of the file.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)  # the new name reaches the disk too


def temporary_folder(target: Path) -> Path:
    """A new empty folder next to `target`, to be filled and given to `commit_folder`."""
    folder = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    folder.mkdir(parents=True)
    return folder


def commit_folder(folder: Path, target: Path) -> None:
    """Put a filled temporary folder in the place of `target`, and remove the folder that was there.

    Args:
        folder: A folder of `temporary_folder`.
        target: Folder to replace; it may be missing, or be a link, which is replaced and not followed.
    """
    sync_tree(folder)
    there = os.path.lexists(target)
    if there and not _exchange(folder, target):
        # No system call to swap them: for a moment there is no `target`, and none after a power cut in that moment.
        old = temporary_folder(target)
        target.rename(old / target.name)
        folder.rename(target)
        folder = old
    elif not there:
        folder.rename(target)
    # After a swap what was there has the temporary name; after a plain rename nothing has it.
    sync(target.parent)
    _remove(folder)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of killed writers directly in a folder. Call it while there is no writer."""
    for leftover in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY_NAME.fullmatch(leftover.name) and not leftover.is_symlink():
            _remove(leftover)


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link but not what it leads to; as far as that can be."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(RecursionError):  # of folders nested by the thousand, which are none of ours
            shutil.rmtree(path, ignore_errors=True)  # opens each folder from the one above it, and follows no link
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A scratch file in the same folder, which replaces `path` when the block ends without an error.

    After an error (an interrupt too) the scratch file is removed and `path` is as it was. The block has to write into
    the scratch file that is there, not put another in its place.

    Raises:
        ValueError: `path` is a folder, or a folder above it is a file.
        OSError: The folder cannot be written to, or the disk is full.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file is to be written there: give it a file name")
    _prepare_parent(path)
    descriptor, scratch = _locked_scratch(path, folder=False)
    try:
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
    """An empty scratch folder next to `path`, which becomes `path` when the block ends without an error.

    Raises:
        ValueError: `path` is there already and is not an empty folder.
        OSError: The folder above cannot be written to, or the disk is full.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already: give another name, or remove it first")
    _prepare_parent(path)
    descriptor, scratch = _locked_scratch(path, folder=True)
    try:
        scratch.chmod(0o777 & ~_umask())
        yield scratch
        # Content first, then the folder's own list of names, then the rename.
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
    """Check that `path` can be staged, before the work that makes it. Leaves no trace.

    Raises:
        ValueError: `path` is a folder, or a folder above it is a file.
        OSError: The folder, which the message names, cannot be written to.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file is to be written there: give it a file name")
    folder = path.parent
    try:
        while not folder.exists():  # it will be made in the nearest one that is there
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(f"{path} cannot be written: {folder} is a file, not a folder")
        with tempfile.NamedTemporaryFile(prefix=_prefix(path), suffix=_STAGED_SUFFIX, dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {folder}: {error.strerror or error}") from error


def _prefix(path: Path) -> str:
    return f".{path.name}-"


def _prepare_parent(path: Path) -> None:
    """Make the folder above, and remove the scratch files that killed writers of `path` left: no process locks them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be written: {error.filename} is a file, not a folder") from error
    form = re.compile(re.escape(_prefix(path)) + _STAGED_CHOICE + re.escape(_STAGED_SUFFIX))
    for entry in path.parent.iterdir():
        if not form.fullmatch(entry.name):
            continue
        # A lock held elsewhere (BlockingIOError) means a writer at work: its scratch file stays. A link is not opened
        # (OSError with ELOOP), and a pipe not waited for.
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        with contextlib.suppress(OSError):
            try:
                mode = os.fstat(descriptor).st_mode
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and _leads_to(entry, descriptor):
                    _remove(entry)
            finally:
                os.close(descriptor)


def _locked_scratch(path: Path, *, folder: bool) -> tuple[int, Path]:
    """A new scratch file or folder for `path`, and an open descriptor whose lock tells other writers that it is in use.

    A kill releases the lock.
    """
    while True:
        if folder:
            scratch = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_STAGED_SUFFIX, dir=path.parent))
            try:
                descriptor = os.open(scratch, os.O_RDONLY)
            except FileNotFoundError:
                continue
        else:
            descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_STAGED_SUFFIX, dir=path.parent)
            scratch = Path(name)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between making and locking it, another writer may have taken it for a leftover.
        if _leads_to(scratch, descriptor):
            return descriptor, scratch
        os.close(descriptor)


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether a path is still the name of an open file or folder."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file; its content is on the disk when this returns."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_tree(folder: Path) -> None:
    """Flush all files and folders below a folder, and the folder itself, to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
