"""Rows that were begun: how often each has ended the process that worked on it.

A row that ends the process (a library that crashes, a machine without memory) cannot say so itself. So its beginning is
written down first, and taken back when the row is settled. What still stands there when the batch is started again
ended the process before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from infer.batch.rows import Row
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json
from talkinghead.provenance import hash_bytes, pretty_json

MOST_DEATHS = 2
"""Number of times that a row may end the process; after that it counts as failed. Once may be chance."""


class Attempts:
    """Beginnings of rows that are not settled, a small file each, whole or absent.

    A row is known by its command and options, so a table may be sorted or shortened meanwhile.

    Args:
        folder: Folder of the files; it is there only while there are some.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def deaths(self, row: Row) -> int:
        """Number of times that a row has ended the process.

        Raises:
            ValueError: The row's file is damaged.
        """
        file = self._file(row)
        if not file.exists():
            return 0
        found = read_json(file)
        if not isinstance(found, dict) or type(found.get("begun")) is not int:
            raise ValueError(f"{file} is no record of a row's beginning: remove it")
        return found["begun"]

    @contextlib.contextmanager
    def begun(self, row: Row) -> Iterator[None]:
        """Context in which a row counts as begun; a process that ends in it has been ended by the row.

        An error settles the row, and so does what stops the batch from outside (Ctrl-C, a full disk): the row is not to
        blame. A `MemoryError` settles nothing: it is the gentle form of being killed for memory.

        Raises:
            OSError: The file cannot be written.
        """
        record = {"begun": self.deaths(row) + 1, "row": row.number, "output": row.options.get("output", "")}
        write_whole(self._file(row), pretty_json(record))
        try:
            yield
        except MemoryError:
            raise
        except BaseException:
            self.forget(row)
            raise
        self.forget(row)

    def forget(self, row: Row) -> None:
        """Take a row's beginning back, so that it has ended no process."""
        self._file(row).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other rows' files are in it, or there never was one
            self._folder.rmdir()

    def _file(self, row: Row) -> Path:
        name = hash_bytes(pretty_json({"command": row.command, "options": dict(row.options)}))[:16]
        return self._folder / f"{name}.json"
