"""Reading byte ranges of many files over and over, from many processes and threads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

from talkinghead.storage import Storage

OPEN_FILES = 256
"""Local shards held open per process, well under the usual limit of 1024."""


class _Descriptor:
    """An open file that closes when the last one who uses it lets go."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class RangeReader:
    """Byte ranges of the files of a storage.

    Local files are kept open (reads are `pread`, so processes and threads share descriptors safely); other storages
    are asked for the range. Pickles as its storage.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (RangeReader, (self.storage,))

    def read(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`.

        Raises:
            ValueError: The file is gone, or shorter than the index says.
        """
        try:
            if self.storage.local_root is None:
                return self.storage.read_range(path, offset, length)
            data = os.pread(self._descriptor(path).number, length, offset)
        except (FileNotFoundError, EOFError) as error:
            raise ValueError(f"{self.storage.describe(path)} is not what the index says: run make verify") from error
        if len(data) != length:
            raise ValueError(f"{self.storage.describe(path)} is shorter than the index says: run make verify")
        return data

    def _descriptor(self, path: str) -> _Descriptor:
        with self._lock:
            descriptor = self._open.get(path)
            if descriptor is None:
                descriptor = self._open[path] = _Descriptor(self.storage.describe(path))
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(path)
            return descriptor
