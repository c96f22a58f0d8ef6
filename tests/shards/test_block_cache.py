from __future__ import annotations

import hashlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards import block_cache
from shards.block_cache import BLOCK, COUNTS, BlockCache
from shards.manifest import ShardEntry
from tests.support.paths import ROOT
from tests.support.small_disk import run_with_mounts

CONTENT = np.random.default_rng(0).bytes(20 * BLOCK + 1000)


class Store:
    """A shard in a store that notes what it is asked for."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.asked = content, list[tuple[int, int]]()
        sha256 = hashlib.sha256(content).hexdigest()
        self.entry = ShardEntry(name="clips-000000.tar", sha256=sha256, size=len(content), samples=1, frames=1)

    def fetch(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        return self.content[offset : offset + length]


def kept(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".total")]


def read(cache: BlockCache, store: Store, offset: int, length: int) -> None:
    assert cache.read(store.entry, offset, length, store.fetch) == store.content[offset : offset + length]


def test_ranges_come_once_from_the_store(tmp_path: Path) -> None:
    store, cache = Store(), BlockCache(tmp_path / "cache", 64 * BLOCK)
    COUNTS.take()
    places = [(0, 1), (BLOCK - 1, 2), (5 * BLOCK + 7, 3 * BLOCK), (len(CONTENT) - 10, 10), (0, 0), (0, len(CONTENT))]
    for offset, length in places:
        read(cache, store, offset, length)
    assert len(store.asked) == 5 and store.asked[1] == (BLOCK, BLOCK), "of two blocks one was there"
    again = BlockCache(tmp_path / "cache", 64 * BLOCK)  # as another process has it
    for offset, length in places:
        read(again, store, offset, length)
    assert len(store.asked) == 5 and COUNTS.take() == (5, 5)


def test_another_shard_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    cache, old, new = BlockCache(tmp_path, 64 * BLOCK), Store(), Store(CONTENT[::-1])
    for store in (old, new, old, new):
        read(cache, store, 100, 2000)
    assert len(old.asked) == len(new.asked) == 1


def test_the_disk_holds_no_more_than_the_size_and_the_unread_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_cache, "TOUCH_S", 0.0)
    size = 10 * BLOCK
    store, cache = Store(), BlockCache(tmp_path, size)
    for number in range(20):
        read(cache, store, number * BLOCK, BLOCK)
        read(cache, store, 0, 10)  # stays, since it is read all the time
        assert sum(file.stat().st_size for file in kept(tmp_path)) <= size
    assert sum(offset == 0 for offset, _ in store.asked) == 1
    read(cache, store, BLOCK, 10)
    assert store.asked[-1][0] == BLOCK, "the longest unread has left"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:99] + b"?" + data[100:], lambda data: b""]
)
def test_a_damaged_block_is_noticed(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    store, cache = Store(), BlockCache(tmp_path, 64 * BLOCK)
    read(cache, store, 0, 50)
    (file,) = kept(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        read(cache, store, 0, 50)
        read(cache, store, 0, 50)
    assert len(store.asked) == 2 and [f"{file} is damaged" in text for text in caplog.messages] == [True]


def test_threads_that_read_the_same(tmp_path: Path) -> None:
    store, cache = Store(), BlockCache(tmp_path, 10 * BLOCK)
    threads = [
        threading.Thread(target=lambda: [read(cache, store, place * BLOCK, BLOCK) for place in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(file.stat().st_size for file in kept(tmp_path)) <= 10 * BLOCK


_WRITER = """
import sys
from pathlib import Path
from shards.block_cache import BLOCK, BlockCache
from tests.shards.test_block_cache import Store
store, cache = Store(), BlockCache(Path(sys.argv[1]), 10 * BLOCK)
print("begun", flush=True)
while True:
    for number in range(20):
        cache.read(store.entry, number * BLOCK, BLOCK, store.fetch)
"""


def test_a_killed_writer_leaves_whole_blocks(tmp_path: Path) -> None:
    store = Store()
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline()
            while len(kept(tmp_path)) < 4:
                pass
            writer.send_signal(signal.SIGKILL)
        cache = BlockCache(tmp_path, 10 * BLOCK)
        read(cache, store, 0, len(CONTENT))
        blocks = [file for file in kept(tmp_path) if file.parent.name != ".new"]
        assert sum(file.stat().st_size for file in blocks) <= 10 * BLOCK
    for left in (tmp_path / ".new").iterdir():
        os.utime(left, (0, 0))
    (tmp_path / ".new" / "left").write_bytes(b"half")
    os.utime(tmp_path / ".new" / "left", (0, 0))
    BlockCache(tmp_path, 10 * BLOCK)
    assert not list((tmp_path / ".new").iterdir())


_LIMITED = """
import logging, sys
from pathlib import Path
from shards.block_cache import BLOCK, BlockCache
from tests.shards.test_block_cache import Store
logging.basicConfig(format="%(message)s")
store, cache = Store(), BlockCache(Path(sys.argv[1]), 64 * BLOCK)
for _ in range(2):
    for number in range(20):
        data = cache.read(store.entry, number * BLOCK, BLOCK, store.fetch)
        assert data == store.content[number * BLOCK :][:BLOCK]
"""


def test_a_full_disk_is_said_once() -> None:
    command = f"mount -t tmpfs -o size=5m none /mnt || exit 77; \"{sys.executable}\" -c '{_LIMITED}' /mnt/cache"
    done = run_with_mounts(command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No space left") + done.stderr.count("reading goes on") == 2, done.stderr


def test_a_file_that_may_not_grow_is_said_once(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK // 2, BLOCK // 2))

    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=limit
    )
    assert done.returncode == 0 and done.stderr.count("reading goes on") == 1, done.stderr
    assert not kept(tmp_path)


def test_a_size_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        BlockCache(tmp_path, BLOCK)
