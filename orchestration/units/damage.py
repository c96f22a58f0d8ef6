"""Files of DATA that cannot be read: they are set aside, never removed, and what they were about is done again."""

from __future__ import annotations

import logging
import re
import shutil

from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import one_line

log = logging.getLogger(__name__)

_SMALL = 64 << 20  # bytes of a file that is read into memory
_NUMBER = re.compile(r"\.\d+$")


def set_aside(storage: Storage, path: str, why: str, then: str) -> str:
    """Move a file that cannot be read to `damaged/`, under a number of its own, and say so.

    Args:
        storage: DATA, the data set's folder or bucket, of which this process is the only writer.
        path: Path of the file.
        why: What is wrong with it.
        then: What is done now, for the message.

    Returns:
        Its new path.

    Raises:
        LinkError: A link lies where it is or should go.
    """
    # Copied first, removed then: a crash in between leaves it where it is, with a copy.
    number = 0
    try:
        data = storage.read(path, _SMALL)
    except ValueError:  # larger than any of ours
        data = None
    while storage.exists(dataroot.damaged(path, number)) or not _create(storage, path, number, data):
        number += 1
    storage.delete(path)
    log.warning("%s; set aside as %s: %s", one_line(why), dataroot.damaged(path, number), then)
    return dataroot.damaged(path, number)


def _create(storage: Storage, path: str, number: int, data: bytes | None) -> bool:
    target = dataroot.damaged(path, number)
    if data is not None:
        return storage.create(target, data)
    with storage.local_copy(path) as source, storage.staged(target) as copy:
        shutil.copyfile(source, copy)
    return True


def damaged_files(storage: Storage) -> list[str]:
    """Paths that files had which were set aside, one for each time, sorted."""
    prefix = f"{dataroot.DAMAGED_FOLDER}/"
    return [_NUMBER.sub("", file.path.removeprefix(prefix)) for file in storage.list(dataroot.DAMAGED_FOLDER)]
