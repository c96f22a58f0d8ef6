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
            # Not by its size alone: a file of /proc has none, and any file may grow while it is read.
            data = stream.read(limit + 1) if os.fstat(stream.fileno()).st_size <= limit else b""
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        size = max(os.fstat(stream.fileno()).st_size, len(data))
    if size > limit:
        raise ValueError(f"{path} has {size:,} bytes: too large for a {what}, which may have {limit:,}")
    return data


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
        root: Folder that the user named; it may be a link itself, or lie behind one.
        path: Path below it; need not exist.

    Raises:
        ValueError: A part of the path below the root is a link.
    """
    current = root
    for part in path.relative_to(root).parts:
        current = current / part
        if current.is_symlink():
            raise ValueError(_is_link(current))


def refuse_links_in(root: Path) -> None:
    """Refuse a folder that holds links, at any depth; for a folder that libraries will write into by themselves.

    Raises:
        ValueError: There is a link.
        OSError: A folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(root, onerror=fail):
        for name in (*folders, *files):
            path = Path(parent) / name
            if path.is_symlink():
                raise ValueError(_is_link(path))


def open_own(path: Path) -> int:
    """Open a file for reading and writing, making it if it is not there; follow no link, cut nothing off.

    Returns:
        The file descriptor.

    Raises:
        ValueError: It is a link, or no regular file.
        OSError: It cannot be opened or made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(_is_link(path)) from error
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


def _is_link(path: Path) -> str:
    return (
        f"{path} is a link to {path.readlink()}: nothing is written or removed through links in this folder; put the"
        " file or folder itself in its place"
    )
