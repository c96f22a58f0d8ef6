"""Whole-or-nothing files, on a local disk and on an S3 server."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from talkinghead.files.storage import Storage
from tests.support.disk_log import DiskLog
from tests.support.paths import ROOT


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data" if request.param == "local" else request.getfixturevalue("s3").uri(tmp_path.name))


def test_round_trip(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/b/file.bin", b"0123456789")
    assert storage.read("a/b/file.bin") == b"0123456789"
    assert storage.read_range("a/b/file.bin", 3, 4) == b"3456"
    with pytest.raises(EOFError, match="shorter"):
        storage.read_range("a/b/file.bin", 8, 4)
    assert storage.size("a/b/file.bin") == 10
    assert storage.exists("a/b/file.bin") and not storage.exists("a/b") and not storage.exists("a/other")
    assert storage.size("a/other") is None
    storage.write("a/b/file.bin", b"new")
    assert storage.read("a/b/file.bin") == b"new"
    storage.write("a/c.txt", b"x")
    assert [(file.path, file.size) for file in storage.list("a")] == [("a/b/file.bin", 3), ("a/c.txt", 1)]
    assert [file.path for file in storage.list("a", ".txt")] == ["a/c.txt"]
    assert storage.list("nowhere") == []
    for file in storage.list("a"):
        assert file.modified_s is not None and abs(file.modified_s - time.time()) < 3600
    with storage.local_copy("a/c.txt") as path:
        assert path.read_bytes() == b"x"
    storage.delete("a/c.txt")
    storage.delete("a/c.txt")
    assert not storage.exists("a/c.txt")
    with pytest.raises(FileNotFoundError):
        storage.read("a/c.txt")
    again: Storage = pickle.loads(pickle.dumps(storage))  # noqa: S301  our own bytes
    assert again.read("a/b/file.bin") == b"new"


def test_create_only_once(storage: Storage) -> None:
    assert storage.create("records/one.json", b"first")
    assert not storage.create("records/one.json", b"second")
    assert storage.read("records/one.json") == b"first"


def test_staged_file_appears_only_after_success(storage: Storage) -> None:
    with pytest.raises(RuntimeError), storage.staged("shard.tar") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert not storage.exists("shard.tar")
    with storage.staged("shard.tar") as path:
        path.write_bytes(b"whole")
        assert not storage.exists("shard.tar")
    assert storage.read("shard.tar") == b"whole"


def test_no_temporary_files_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("one", b"1")
    storage.create("two", b"2")
    storage.create("two", b"2")
    storage.check_writable()
    assert storage.list("tmp") == []
    (tmp_path / "tmp" / ("0123456789abcdef" * 2)).write_bytes(b"by a killed writer")
    assert storage.sweep_temporary() == 1
    assert storage.list("tmp") == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", ""])
def test_paths_cannot_leave_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leaves the data folder"):
        Storage(tmp_path / "data").write(path, b"")


def test_racing_creators_have_one_winner(tmp_path: Path) -> None:
    storage, wins = Storage(tmp_path), []
    barrier = threading.Barrier(8)

    def compete(number: int) -> None:
        barrier.wait()
        if storage.create("record", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1 and storage.read("record") == str(wins[0]).encode()


CREATE = """
import sys
from talkinghead.files.storage import Storage
storage, name = Storage(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for number in range(100):
    if storage.create(f"records/{number}", name.encode()):
        print(number, flush=True)
"""


def test_of_three_processes_one_creates_each_file(storage: Storage) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, storage.location, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in "abc"
    ]
    for process in processes:  # the start of an interpreter takes longer than the race
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = {name: process.communicate()[0].split() for name, process in zip("abc", processes, strict=True)}
    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(100))
    assert all(
        storage.read(f"records/{number}") == name.encode() for name, numbers in won.items() for number in numbers
    )


def test_a_new_staged_file_replaces_nothing(storage: Storage) -> None:
    with storage.staged("shard.tar", new=True) as path:
        path.write_bytes(b"first")
    with pytest.raises(FileExistsError, match=r"there already"), storage.staged("shard.tar", new=True) as path:
        path.write_bytes(b"second")
    assert storage.read("shard.tar") == b"first" and storage.list("tmp") == []


def test_a_link_whose_answer_was_lost_is_known_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that had to be asked twice says that the name is taken: by us."""
    link = os.link

    def asked_twice(*arguments: Any, **options: Any) -> None:
        link(*arguments, **options)
        link(*arguments, **options)

    monkeypatch.setattr(os, "link", asked_twice)
    storage = Storage(tmp_path)
    assert storage.create("one", b"mine") and not storage.create("one", b"another's")
    assert storage.read("one") == b"mine"


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("file", b"old")
    code = """
import sys
from talkinghead.files.storage import Storage
storage = Storage(sys.argv[1])
with storage.staged("file") as path:
    path.write_bytes(b"new but not whole")
    print("writing", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert storage.read("file") == b"old"
    assert len(storage.list("tmp")) == 1


def test_what_is_written_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, log = Storage(tmp_path), DiskLog.watching(monkeypatch)
    storage.write("a/written", b"whole")
    assert storage.create("a/created", b"whole")
    with storage.staged("a/staged") as path:
        path.write_bytes(b"first, " * 1000)
        with path.open("ab") as stream:
            stream.write(b"and the rest")
    for name in ("written", "created", "staged"):
        assert log.survives_a_power_cut(tmp_path / "a" / name), f"{name}: flushed, then named, then its folder flushed"


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot write to"):
        Storage(tmp_path / "data").check_writable()
