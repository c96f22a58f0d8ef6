"""Reading byte ranges of many files repeatedly, from many processes and threads.

From a disk each range is read by itself. From a store ranges of the same file are read together where little lies
between them, or where the caller wants few requests, and those that are left are read at the same time.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from shards.block_cache import BlockCache
from shards.manifest import ShardEntry
from talkinghead.files.foreign import open_regular
from talkinghead.files.patience import read_locally
from talkinghead.files.storage import Storage

OPEN_FILES = 256
"""Local shards held open per process, well under the usual limit of 1024."""

READ_OVER = 2 << 20
"""Most bytes between two ranges of a file in a store that are read with them, rather than by a request of its own: as
many as come in the time of a request. To a store in the same region that is some 25 ms, of which one connection carries
about 85 MB/s (AWS, "Performance design patterns for Amazon S3": a connection for each 85-90 MB/s)."""
_REQUESTS = 16
"""Requests that the threads of a reader make at the same time, next to the caller's own."""


class Range(NamedTuple):
    """Bytes of a file."""

    path: str
    offset: int
    length: int

    @property
    def stop(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.length

    def holds(self, other: Range) -> bool:
        """Whether all bytes of another range are in this one."""
        return self.path == other.path and self.offset <= other.offset and other.stop <= self.stop


def joined(ranges: Iterable[Range], gap: int, most: int | None = None) -> list[Range]:
    """Few ranges that hold all of these.

    Args:
        ranges: The ranges.
        gap: Most bytes between two ranges of a file that are read with them.
        most: Number of ranges that are wanted: where more are left, those of a file that lie nearest to each other are
            joined however much lies between them. Ranges of different files never are, so that as many as there are
            files may be left. None: any number.
    """
    found: list[Range] = []
    for one in sorted(ranges):
        if found and one.offset - found[-1].stop <= gap and found[-1].path == one.path:
            one = _spanning(found.pop(), one)
        found.append(one)
    while most is not None and len(found) > most:
        between = {
            after.offset - one.stop: number
            for number, (one, after) in enumerate(itertools.pairwise(found))
            if one.path == after.path
        }
        if not between:
            break
        number = between[min(between)]
        found[number : number + 2] = [_spanning(*found[number : number + 2])]
    return found


def _spanning(one: Range, after: Range) -> Range:
    """Range from the beginning of one to the end of both."""
    return Range(one.path, one.offset, max(one.stop, after.stop) - one.offset)


class HeldRanges:
    """Ranges that were read already, in memory. Safe to use from several threads."""

    def __init__(self) -> None:
        self._held: list[tuple[Range, memoryview]] = []

    def __len__(self) -> int:
        """Number of ranges that are held."""
        return len(self._held)

    def hold(self, one: Range, data: bytes) -> None:
        """Keep a range."""
        self._held.append((one, memoryview(data)))

    def find(self, wanted: Range) -> memoryview | None:
        """Bytes of a range, where they are held."""
        for one, data in self._held:
            if one.holds(wanted):
                return data[wanted.offset - one.offset :][: wanted.length]
        return None


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
    storages each range is requested, unless a cache has it. Pickling keeps the arguments.

    Args:
        storage: The storage.
        shards: Path → its entry in the manifest, of the files that a cache may keep.
        cache: Cache of a store's files on a local disk.
    """

    def __init__(
        self, storage: Storage, shards: Mapping[str, ShardEntry] | None = None, cache: BlockCache | None = None
    ) -> None:
        self.storage = storage
        self.shards = shards or {}
        self.cache = cache
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._threads: tuple[int, ThreadPoolExecutor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (RangeReader, (self.storage, self.shards, self.cache))

    @property
    def remote(self) -> bool:
        """Whether each range costs a request."""
        return self.storage.local_root is None

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Bytes of a file: `length` of them from `offset` on.

        Raises:
            ValueError: The file is gone or no regular file, or shorter than the index says.
        """
        try:
            if self.remote:
                return self._remote(path, offset, length)
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

    def read_all(self, ranges: Iterable[Range], most: int | None = None) -> HeldRanges:
        """Several ranges, of a store by few requests at the same time (`joined`). Raises like `read`."""
        held = HeldRanges()
        spans = joined(ranges, READ_OVER, most) if self.remote else list(ranges)
        # One in this thread, the others next to it.
        others = [self._pool().submit(self.read, *span) for span in spans[1:]] if self.remote else []
        for number, span in enumerate(spans):
            held.hold(span, others[number - 1].result() if number and others else self.read(*span))
        return held

    def open(self, path: str, offset: int, length: int) -> BinaryIO:
        """The range as a seekable file: read in pieces as needed from a local disk, at once from other storages."""
        if self.remote:
            return io.BytesIO(self.read(path, offset, length))
        # Decoders ask for a few bytes at a time: read 64 KiB at once.
        return io.BufferedReader(_RangeStream(self, path, offset, length), 1 << 16)  # type: ignore[return-value]

    def _remote(self, path: str, offset: int, length: int) -> bytes:
        entry = self.shards.get(path)
        # A request that the manifest already says to be in vain.
        if entry is not None and not 0 <= offset <= offset + length <= entry.size:
            raise EOFError
        if entry is None or self.cache is None:
            return self.storage.read_range(path, offset, length)
        return self.cache.read(entry, offset, length, lambda first, size: self.storage.read_range(path, first, size))

    def _pool(self) -> ThreadPoolExecutor:
        """Threads of this process; a fork has none of those that it had before."""
        with self._lock:
            if self._threads is None or self._threads[0] != os.getpid():
                self._threads = os.getpid(), ThreadPoolExecutor(_REQUESTS, "requests")
            return self._threads[1]

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
