"""Reading byte ranges of many files repeatedly, from many processes and threads."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from talkinghead.files.foreign import open_regular
from talkinghead.files.patience import read_locally
from talkinghead.files.storage import Storage

OPEN_FILES = 256
"""Local shards held open per process, well under the usual limit of 1024."""


class _Descriptor:
    """An open file that closes with its last reference, so that no thread closes it while another reads."""

    def __init__(self, path: Path) -> None:
        self._stream = open_regular(path)
        self.number = self._stream.fileno()
        self.size = os.fstat(self.number).st_size
        """Bytes of the file when it was opened: shards never grow."""


class RangeReader:
    """Reader of byte ranges of the files of a storage.

    Local files are kept open (reads are `pread`, so processes and threads share descriptors safely); from other
    storages each range is requested. Pickling keeps only the storage.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (RangeReader, (self.storage,))

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Bytes of a file: `length` of them from `offset` on.

        Raises:
            ValueError: The file is gone or no regular file, or shorter than the index says.
        """
        try:
            if self.storage.local_root is None:
                return self.storage.read_range(path, offset, length)
            file = Path(self.storage.describe(path))
            data = read_locally(file, lambda: self._local(path, file, offset, length))
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.storage.describe(path)} is not there, but in the index: run make verify"
            ) from error
        except EOFError as error:
            raise ValueError(
                f"{self.storage.describe(path)} is shorter than the index says: run make verify"
            ) from error
        # At the end of a file `pread` gives fewer bytes, and no error.
        if len(data) != length:
            raise ValueError(f"{self.storage.describe(path)} is shorter than the index says: run make verify")
        return data

    def open(self, path: str, offset: int, length: int) -> BinaryIO:
        """The range as a seekable file: read in pieces as needed from a local disk, at once from other storages."""
        if self.storage.local_root is None:
            return io.BytesIO(self.read(path, offset, length))
        # Decoders ask for a few bytes at a time: read 64 KiB at once.
        return io.BufferedReader(_RangeStream(self, path, offset, length), 1 << 16)  # type: ignore[return-value]

    def _local(self, path: str, file: Path, offset: int, length: int) -> bytes:
        descriptor = self._descriptor(path, file)  # held until the read is done: another thread may push it out
        # Memory is taken before anything is read, and an index may ask for any amount.
        if not 0 <= offset <= offset + length <= descriptor.size:
            raise EOFError
        # The lock is not held here: slow disks would make all threads wait for one read.
        try:
            return os.pread(descriptor.number, length, offset)
        except OSError:
            with self._lock:
                self._open.pop(path, None)  # a file server that has started anew knows it by another number
            raise

    def _descriptor(self, path: str, file: Path) -> _Descriptor:
        # Least recently used files leave first; a descriptor closes when the last thread that reads lets go of it.
        with self._lock:
            descriptor = self._open.get(path)
            if descriptor is None:
                descriptor = self._open[path] = _Descriptor(file)
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(path)
            return descriptor


class _RangeStream(io.RawIOBase):
    """A byte range of a file, as a raw stream that begins at 0."""

    def __init__(self, ranges: RangeReader, path: str, offset: int, length: int) -> None:
        self._ranges, self._path, self._offset, self._length = ranges, path, offset, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        # Nothing after the end of the range: there lies the padding, and then the next member.
        count = max(0, min(len(buffer), self._length - self._position))
        buffer[:count] = self._ranges.read(self._path, self._offset + self._position, count)
        self._position += count
        return count
