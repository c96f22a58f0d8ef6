"""Files of SOURCE, which may be a stranger's folder: where its links may lead, and which files are worth reading.

A link in a downloaded folder may lead to any file of the user's, whose frames or text would then be published with the
data set. So links are followed inside SOURCE only, unless the user says that they are their own (`--follow-links`).
Named pipes, sockets and devices are never opened, because that may wait for ever. And files that hold next to nothing,
or more than any video, are refused before they are hashed for hours.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from talkinghead.files.foreign import open_regular
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.runtime.errors import is_machine_error, one_line

SOURCE_BYTES = 512 << 30
"""Largest source in bytes, and largest sum over a folder of frames: twice what YouTube takes as one video."""
FOLDER_FILES = 500_000
"""Most files of a folder of frames: more than an hour at 120 frames per second."""
SPECIAL = "neither a file nor a folder (a pipe, socket or device); not opened"

_LARGE = 1 << 30  # bytes; a smaller file is hashed within seconds, whatever it holds
_STORED_SHARE = 64  # a file of which less than 1/64 is stored is mostly holes


def locate(source: Path, path: str, *, follow_links: bool = False) -> Path:
    """Real path of a file or folder of SOURCE, to be opened at once.

    The catalog was made earlier, so all that the listing looked at is looked at again: the file may have been
    exchanged for a link or a pipe since. The path that is returned has no links left that could still be exchanged.
    Where nothing is, or nothing that may be looked at, opening it says so.

    Args:
        source: Folder SOURCE.
        path: Path relative to it, as in the catalog.
        follow_links: Whether links may lead out of SOURCE.

    Raises:
        UnreadableMediaError: It leads out of SOURCE, is neither a file nor a folder, or is not worth reading.
        OSError: The machine is at fault.
    """
    full = source / path
    name = one_line(str(full))
    real = Path(os.path.realpath(full))
    if not follow_links and not is_inside(source, real):
        raise UnreadableMediaError("no_permission", f"{name} {leads_out(real)}")
    try:
        status = real.stat()
    except OSError as error:
        if is_machine_error(error):
            raise
        return real
    if stat.S_ISREG(status.st_mode):
        if reason := not_worth_reading(real, status):
            raise UnreadableMediaError("too_large", f"{name} {reason}")
    elif not stat.S_ISDIR(status.st_mode):
        raise UnreadableMediaError("not_media", f"{name} is {SPECIAL}")
    return real


def is_inside(folder: Path, path: Path | str) -> bool:
    """Whether a path, with all links resolved, is a folder itself or lies below it."""
    root, real = os.path.realpath(folder), os.path.realpath(path)
    return real == root or real.startswith(os.path.join(root, ""))  # noqa: PTH118 - a name may be undecodable


def leads_out(target: Path | str) -> str:
    """Message about a link that leads out of SOURCE; what it is called comes before."""
    return f"is a link that leads out of SOURCE: {one_line(str(target))}; --follow-links takes it"


def not_worth_reading(path: Path, status: os.stat_result) -> str | None:
    """Reason why a regular file of SOURCE is not read at all, or None.

    A sparse file is as quick to make as it is slow to hash. The number of stored blocks alone would not tell it from a
    real one: file systems that compress, or that keep old files on tape, report few blocks or none for real content.
    So a file that looks sparse is asked where its data lies (SEEK_DATA), which all of those answer with "everywhere",
    as does a file system that does not know. Sparse files on such a file system are bounded by `SOURCE_BYTES` only.

    Args:
        path: The file.
        status: What `stat` says about it.
    """
    size, stored = status.st_size, status.st_blocks * 512
    if size > SOURCE_BYTES:
        return f"has {size:,} bytes; a source may have {SOURCE_BYTES:,}"
    few = size // _STORED_SHARE
    if size >= _LARGE and stored < few and _data_bytes(path, few) < few:
        return f"is mostly holes: {size:,} bytes, of which {stored:,} are stored"
    return None


def _data_bytes(path: Path, enough: int) -> int:
    """Bytes of a file that are no holes; counted until there are enough. Everything, where that cannot be told."""
    try:
        with open_regular(path) as stream:
            found = end = 0
            while found < enough:
                begin = os.lseek(stream.fileno(), end, os.SEEK_DATA)
                end = os.lseek(stream.fileno(), begin, os.SEEK_HOLE)
                found += end - begin
            return found
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data beyond the last place
            return found
        if is_machine_error(error):
            raise
        return enough  # no such question on this file system, or no permission: reading it will tell
