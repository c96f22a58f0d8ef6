"""Files that are whole or not there, for results outside a data set (`talkinghead.storage` writes those inside)."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file as a whole: written beside its place, flushed to disk, renamed.

    A writer that is killed leaves at most a hidden `.<name>.<random>.tmp`; one that fails leaves nothing.

    Args:
        path: The file; folders above it are made.
        data: Its whole content.

    Raises:
        OSError: The folder cannot be written, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
