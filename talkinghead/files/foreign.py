"""Files that may be a stranger's: videos and metadata from the web, weights, and DATA and RUN folders of others.

Opening one never waits, as it would for ever on a named pipe; reading one into memory has a limit; JSON from one ends
in a result or in one line. And below a folder that may be a stranger's, nothing is written or removed through a link:
it could lead to any file of the user's.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

JSON_BYTES = 16 << 20
"""Largest JSON file that is read where the caller states no other limit; its objects take up to 25 times as much."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class LinkError(ValueError):
    """A link lies where something of a folder is to be written or removed; the message says which, and what to do."""


def link_error(path: Path, advice: str = "") -> LinkError:
    """Error that names a link, and where it leads.

    Args:
        path: The link.
        advice: End of the message, where there is more than one way out.
    """
    try:
        target = f" to {path.readlink()}"
    except OSError:  # exchanged meanwhile
        target = ""
    return LinkError(
        f"{path} is a link{target}: nothing is written or removed through links in this folder; put the file or folder"
        f" itself in its place{advice}"
    )


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting: a named pipe, a device or a folder is refused.

    Raises:
        ValueError: It is no regular file.
        OSError: It cannot be opened.
    """
    # Before opening, which alone may do something to a device; and after it, when nobody can exchange the file.
    _check_regular(path, path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_limited(path: Path, limit: int, what: str = "file") -> bytes:
    """Whole content of a file that is small by its nature.

    Args:
        path: File to read.
        limit: Bytes that it may have at most.
        what: What it should be, for the message.

    Raises:
        ValueError: It is larger, or no regular file.
        OSError: It cannot be read.
    """
    with open_regular(path) as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(size + 1) if size <= limit else b""
            # Not by its size alone: a file of /proc has none, and any file may grow while it is read.
            if len(data) > size:
                data += stream.read(limit + 1 - len(data))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        refuse_large(str(path), max(size, len(data)), limit, what)
    return data


def refuse_large(name: str, size: int, limit: int, what: str = "file") -> None:
    """Raise `ValueError` for a file of more than `limit` bytes.

    Args:
        name: Name of the file, for the message.
        size: Bytes that it has.
        limit: Bytes that it may have at most.
        what: What it should be, for the message.
    """
    if size > limit:
        raise ValueError(f"{name} has {size:,} bytes: too large for a {what}, which may have {limit:,}")


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Content of a JSON file.

    Args:
        path: File to read.
        limit: Bytes that it may have at most.

    Raises:
        ValueError: It is larger, no regular file, or no JSON.
        OSError: It cannot be read.
    """
    return parse_json(read_limited(path, limit, "JSON file"), str(path))


def parse_json(data: bytes | str, name: str) -> Any:
    """Value of a JSON text.

    Args:
        data: The text; as bytes in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        name: Name of the file, for the message.

    Raises:
        ValueError: It is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf") if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError(f"{name} is no JSON of ours: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def refuse_links(root: Path, path: Path) -> None:
    """Refuse to write or remove a file whose name leads through a link below a folder.

    Args:
        root: Folder that the user named; it may be a link itself, or be reached through one.
        path: Path below it; need not exist.

    Raises:
        LinkError: A part of the path below the root is a link.
    """
    current = root
    for part in path.relative_to(root).parts:
        current = current / part
        if current.is_symlink():
            raise link_error(current)


def refuse_links_in(root: Path) -> None:
    """Refuse a folder that holds links, at any depth; for a folder that libraries will write into by themselves.

    Raises:
        LinkError: There is a link.
        OSError: A folder cannot be read.
    """
    for entry in entries_below(root):
        if entry.is_symlink():
            raise link_error(Path(entry.path))


def entries_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder and its subfolders but these, at any depth; subfolders that are links are not entered.

    Raises:
        OSError: A folder cannot be read, or the names are too long; a subfolder that vanishes meanwhile is no error.
    """
    # No recursion, which would end in an error of its own where folders are nested by the thousand.
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        yield entry
        except FileNotFoundError as error:
            if error.filename == str(folder):
                raise


def open_own(path: Path, mode: int = 0o666) -> int:
    """Open a file for reading and writing, making it if it is not there; follow no link, cut nothing off.

    Args:
        path: File to open.
        mode: Permissions of a new file, from which the process's mask is taken.

    Returns:
        The file descriptor.

    Raises:
        LinkError: It is a link.
        ValueError: It is no regular file.
        OSError: It cannot be opened or made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link_error(path) from error
        if error.errno in (errno.EISDIR, errno.ENXIO):
            _check_regular(path, path.lstat().st_mode)
        raise
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def warn_of_owner(folder: Path) -> None:
    """Log a warning when a folder belongs to another user, who can change it at any time."""
    owner = folder.stat().st_uid
    if owner == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    log.warning("%s belongs to another user (%s), who can change what it holds at any time", folder, name)


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")
