"""Cache on a local disk of what is read from a store, for all processes of a machine: blocks of shards, up to a size.

Kept are blocks of 1 MiB, not shards. A training draws its samples at random over all shards, and from each it needs
some hundred kilobytes: with shards as the unit, the first sample of each would wait for a gigabyte, and where DATA is
larger than the cache, shards would leave before their second sample is drawn. Blocks cost at most two more of them than
the range that is read, and less than a request does (`shards.ranges.READ_OVER`); where DATA fits, each byte of it comes
from the store once. A range that lacks blocks takes one request, from the first to the last of them.

    DIR/<SHA-256 of the shard, its first half>-<its size>/<number of the block>     checksum, length, content
    DIR/.new/<random name>                                                          blocks that are being written
    DIR/.total                                                                      bytes of all blocks

A shard is known by the hash that `DATASET.json` has for it: one that was replaced by another of the same name is never
taken for it. A block appears whole, by a rename, and is checked whenever it is read, so that a process may be killed at
any moment, and the machine, too. Two processes that fetch the same block write the same file. The disk holds at most
the given size, and blocks of 1 MiB that are being written; those leave first that were not read for the longest time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shards.manifest import ShardEntry
from talkinghead.runtime.errors import error_text

log = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes of a block; the last one of a shard has fewer."""
_HEAD = struct.Struct("<4sIQ")  # mark, CRC-32 of the content, its length
_MARK = b"THB1"
_KEPT = 7 / 8
"""Share of the size that is left after blocks were removed: it takes a walk over all of them, which should be rare."""
TOUCH_S = 60.0
"""Seconds for which a block that is read counts as just read: not every read writes to the disk."""
_LEFT_S = 600.0
"""Age in seconds at which a block that is being written has no writer any more: it takes milliseconds."""
_WAIT_S = 5.0
"""Seconds of waiting for the others that count; a stopped process may hold their lock, and a block may be let go."""

Fetch = Callable[[int, int], bytes]
"""Function (offset, length) → bytes of a shard out of the store."""


class Counts:
    """Number of ranges of this process that the caches had, and of those that a store was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits, self._misses = 0, 0

    def add(self, hits: int, misses: int) -> None:
        """Count ranges, also those that another process has counted."""
        with self._lock:
            self._hits, self._misses = self._hits + hits, self._misses + misses

    def take(self) -> tuple[int, int]:
        """Hits and misses since this was asked last."""
        with self._lock:
            taken = self._hits, self._misses
            self._hits, self._misses = 0, 0
        return taken


COUNTS = Counts()
"""Count of this process, over all its caches."""


class BlockCache:
    """Blocks of shards below a folder. Safe to use from several processes and threads; pickles as its arguments.

    Args:
        folder: Folder on a local disk; made where it is missing.
        size: Bytes that its blocks may have.

    Raises:
        OSError: The folder cannot be made.
        ValueError: The size holds no eight blocks.
    """

    def __init__(self, folder: Path, size: int) -> None:
        if size < 8 * BLOCK:
            raise ValueError(f"a cache of {size:,} bytes is too small: it needs at least {8 * BLOCK:,}")
        self.folder, self.size = folder.absolute(), size
        self._new = self.folder / ".new"
        self._new.mkdir(parents=True, exist_ok=True)
        self._told: set[str] = set()
        self._keeps = True
        # What killed writers have left.
        for left in self._new.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_S:
                    left.unlink()

    def __reduce__(self) -> tuple[Any, ...]:
        return (BlockCache, (self.folder, self.size))

    def read(self, shard: ShardEntry, offset: int, length: int, fetch: Fetch) -> bytes:
        """Range of a shard, in which it must lie; errors of `fetch` pass through."""
        if not length:
            return b""
        numbers = range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
        there = {number: self._read(self._path(shard, number), _length(shard, number)) for number in numbers}
        lacking = [number for number in numbers if there[number] is None]
        COUNTS.add(not lacking, bool(lacking))
        if lacking:
            # One request, over blocks in between that are there.
            first, last = lacking[0], lacking[-1]
            fetched = fetch(first * BLOCK, (last - first) * BLOCK + _length(shard, last))
            for number in range(first, last + 1):
                at = (number - first) * BLOCK
                there[number] = fetched[at : at + _length(shard, number)]
            for number in lacking:
                self._keep(self._path(shard, number), there[number] or b"")
        data = b"".join(content for content in there.values() if content is not None)
        start = offset - numbers[0] * BLOCK
        return data[start : start + length]

    def _path(self, shard: ShardEntry, number: int) -> Path:
        return self.folder / f"{shard.sha256[:32]}-{shard.size}" / str(number)

    def _read(self, path: Path, length: int) -> bytes | None:
        """Content of a block; None where it is not there, or damaged."""
        try:
            with path.open("rb") as file:
                data = file.read()
                if time.time() - os.fstat(file.fileno()).st_mtime > TOUCH_S:
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell("unreadable", f"{error_text(error)}: it is read from the store")
            return None
        content = memoryview(data)[_HEAD.size :]
        if len(content) == length and data[: _HEAD.size] == _HEAD.pack(_MARK, zlib.crc32(content), length):
            return bytes(content)
        self._tell("damaged", f"{path} is damaged: it is removed, and read from the store again")
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    # --- writing ------------------------------------------------------------------------------------------------------

    def _keep(self, path: Path, content: bytes) -> None:
        """Keep a block, if the disk takes it."""
        if not self._keeps:
            return
        new = self._new / uuid.uuid4().hex
        try:
            try:
                with new.open("wb") as file:
                    file.write(_HEAD.pack(_MARK, zlib.crc32(content), len(content)) + content)
                with self._counted() as count:
                    if path.exists():  # another process was faster
                        return
                    # Counted before it appears: a process that is killed in between has counted too much, which the
                    # next removal puts right.
                    count(_HEAD.size + len(content))
                    path.parent.mkdir(exist_ok=True)
                    new.replace(path)
            finally:
                new.unlink(missing_ok=True)
        except TimeoutError:
            return
        except OSError as error:
            self._keeps = False
            self._tell("full", f"{error_text(error)}: reading goes on, and this process keeps no more blocks there")

    @contextlib.contextmanager
    def _counted(self) -> Iterator[Callable[[int], None]]:
        """Context with the lock of the total, and a function that adds bytes to it and makes room for them.

        Raises:
            TimeoutError: Another process holds the lock.
        """
        descriptor = os.open(self.folder / ".total", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor)

            def count(more: int) -> None:
                stored = os.pread(descriptor, 8, 0)
                total = int.from_bytes(stored, "little") if len(stored) == 8 else self._remove_down_to(self.size - more)
                if total + more > self.size:
                    total = self._remove_down_to(min(int(self.size * _KEPT), self.size - more))
                os.pwrite(descriptor, (total + more).to_bytes(8, "little"), 0)

            yield count
        finally:
            os.close(descriptor)  # and unlock

    def _remove_down_to(self, size: int) -> int:
        """Remove blocks, the longest unread first, until they have no more than so many bytes; returns what is left."""
        found: list[tuple[float, int, str]] = []
        for folder in os.scandir(self.folder):
            if folder.name.startswith(".") or not folder.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    about = file.stat(follow_symlinks=False)
                    found.append((about.st_mtime, about.st_size, file.path))
        total = sum(length for _, length, _ in found)
        for _, length, path in sorted(found):
            if total <= size:
                break
            Path(path).unlink(missing_ok=True)
            total -= length
            with contextlib.suppress(OSError):
                Path(path).parent.rmdir()  # only where it is empty
        return total

    def _tell(self, what: str, text: str) -> None:
        """Warn, once for each kind of fault."""
        if what not in self._told:
            self._told.add(what)
            log.warning("cache %s: %s", self.folder, text)


def _length(shard: ShardEntry, number: int) -> int:
    """Bytes of a block of a shard."""
    return min(BLOCK, shard.size - number * BLOCK)


def _lock(descriptor: int) -> None:
    """Lock a file against other processes and threads, who each have opened it anew."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process counts the blocks of the cache") from None
            time.sleep(0.01)
