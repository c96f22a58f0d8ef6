"""Folders nested so deeply that code with recursion ends in an error of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def nested_folders(top: Path, depth: int) -> Iterator[None]:
    """Folders in folders, removed after the block: Python's own removal, which pytest uses, ends in such an error."""
    top.mkdir(parents=True)
    folder = os.open(top, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=folder)
            inner = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield
    finally:
        os.close(folder)
        subprocess.run(["rm", "-rf", str(top)], check=True)
