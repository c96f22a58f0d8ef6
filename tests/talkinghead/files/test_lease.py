"""The lease of a data set, on a local disk and on an S3 server, between real processes that are killed and stopped."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkinghead import dataroot
from talkinghead.files.foreign import LinkError
from talkinghead.files.lease import LEASE_TTL, Lease, LeaseLostError
from talkinghead.files.lock import LockedError
from talkinghead.files.s3_files import RefusedError
from talkinghead.files.storage import Storage, StoredFile
from talkinghead.runtime.errors import is_machine_error
from tests.support.object_store import LocalS3
from tests.support.paths import ROOT
from tests.support.store_faults import answering, refusing_conditions, without_conditions

HOLD = """
import sys
from talkinghead.files import lease
from talkinghead.files.storage import Storage
if sys.argv[2] == "elsewhere":
    here = lease._Process.this
    lease._Process.this = classmethod(lambda cls: lease.replace(here(), boot="of another machine"))
storage = Storage(sys.argv[1])
with storage.held():
    print("held", flush=True)
    for line in sys.stdin:
        try:
            storage.write("plans/plan", line.encode())
            print("written", flush=True)
        except lease.LeaseLostError as error:
            print(error, flush=True)
"""
TAKE = """
import sys
from talkinghead.files.lock import LockedError
from talkinghead.files.storage import Storage
sys.stdin.readline()
try:
    with Storage(sys.argv[1]).held():
        print("held", flush=True)
        sys.stdin.readline()
except LockedError:
    print("refused", flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "data") if request.param == "local" else request.getfixturevalue("s3").uri(tmp_path.name)


class Holder:
    """A process that holds the lease of a place, and writes what it is told to."""

    def __init__(self, place: str, where: str, ttl_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, place, where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {LEASE_TTL: str(ttl_s)},
        )
        assert self.read() == "held"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self, text: str) -> str:
        """What it says of writing a text into a plan."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        """Stop it; it may take a moment until it stands."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    started: list[Holder] = []
    yield started
    for holder in started:
        holder.end()


def test_one_holds_it_and_the_others_learn_who(place: str) -> None:
    storage, other = Storage(place), Storage(place)
    with storage.held():
        assert storage.epoch == 1
        said = rf"another job is writing to \S+ \(process {os.getpid()} on \S+ by .+, since 20\S+ .*UTC\); wait"
        with pytest.raises(LockedError, match=said), other.held():
            pass
    with other.held():
        assert (storage.epoch, other.epoch) == (None, 2)
        assert [file.path for file in other.list("lease")] == [dataroot.lease(2)], "those that are over are removed"


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(place: str, holders: list[Holder]) -> None:
    holders.append(Holder(place, "here", ttl_s=80_000))
    holders[0].end()
    with Storage(place).held():
        pass


def test_that_of_another_machine_runs_out(place: str, holders: list[Holder]) -> None:
    holders.append(Holder(place, "elsewhere", ttl_s=2.0))
    holders[0].end()
    with Storage(place).held():
        pass


def test_a_living_one_of_another_machine_keeps_it(place: str, holders: list[Holder]) -> None:
    holders.append(Holder(place, "elsewhere", ttl_s=60.0))
    with pytest.raises(LockedError, match=r"takes over 60 s after its last sign of life"), Storage(place).held():
        pass
    assert holders[0].write("still its own") == "written"


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_who_was_stopped_and_taken_over_writes_no_more(place: str, where: str, holders: list[Holder]) -> None:
    holders.append(Holder(place, where, ttl_s=2.0))
    holder = holders[0]
    assert holder.write("old") == "written"
    holder.stop()
    storage = Storage(place)
    with storage.held():
        storage.write("plans/plan", b"new")
        holder.process.send_signal(signal.SIGCONT)
        said = holder.write("old again")
        assert said.startswith("this command may write to ") and f"taken over (process {os.getpid()} on" in said
        assert storage.read("plans/plan") == b"new"
    # Nor when nobody holds it any more; and its end takes nothing from the others.
    assert "taken over" in holder.write("old again")
    assert holder.process.stdin is not None
    holder.process.stdin.close()
    assert holder.process.wait() == 0
    assert storage.read("plans/plan") == b"new" and [file.path for file in storage.list("lease")] == [dataroot.lease(2)]


def test_a_copy_in_a_worker_is_refused_alike(place: str) -> None:
    storage = Storage(place)
    with storage.held():
        copy: Storage = pickle.loads(pickle.dumps(storage))  # noqa: S301  our own bytes
        copy.write("units/one", b"in time")
    with Storage(place).held():
        late = [
            lambda: copy.write("units/one", b"late"),
            lambda: copy.create("records/one", b"late"),
            lambda: copy.delete("units/one"),
            lambda: stage(copy, new=False),
            lambda: stage(copy, new=True),
        ]
        for write in late:
            with pytest.raises(LeaseLostError) as refused:
                write()
            assert is_machine_error(refused.value), "no input's fault"
    assert copy.read("units/one") == b"in time" and not copy.list("records") and not copy.exists("shard.tar")


def stage(storage: Storage, *, new: bool) -> None:
    with storage.staged("shard.tar", new=new) as path:
        path.write_bytes(b"late")


def test_of_many_who_want_it_one_has_it(place: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert sorted(process.stdout.readline() for process in processes if process.stdout) == [
            "held\n",
            "refused\n",
            "refused\n",
        ]
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Late(Storage):
    """A place whose first listing is from before others came and went."""

    shown = False

    def list(self, folder: str, suffix: str = "") -> list[StoredFile]:
        first, self.shown = not self.shown, True
        return [] if first else super().list(folder, suffix)


def test_an_epoch_that_is_over_cannot_begin_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for _ in range(2):
        with storage.held():
            pass
    with storage.held():
        late = Lease(Late(tmp_path))
        with pytest.raises(LockedError):
            late.take()
        assert [file.path for file in storage.list("lease")] == [dataroot.lease(3)]


def test_who_loses_its_file_writes_no_more(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with storage.held():
        (tmp_path / dataroot.lease(1)).unlink()
        with pytest.raises(LeaseLostError, match="its lease was removed"):
            storage.write("file", b"x")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"9" * 20_000, b"0"])
def test_a_file_that_is_no_lease_is_left(tmp_path: Path, content: bytes) -> None:
    storage = Storage(tmp_path)
    if content == b"0":
        with storage.held():
            pass
        known = json.loads((tmp_path / dataroot.lease(1)).read_bytes())
        content = json.dumps(known | {"ttl_s": 1e9}).encode()
    (tmp_path / "lease").mkdir(exist_ok=True)
    (tmp_path / "lease" / "notes.txt").write_text("not looked at")
    (tmp_path / dataroot.lease(1)).write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"000000001\.json (is no lease of ours|has 20,000 bytes: too large)"),
        storage.held(),
    ):
        pass
    assert (tmp_path / dataroot.lease(1)).read_bytes() == content


def test_it_says_no_arguments_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may name a person who is to be taken out."""
    monkeypatch.setattr(sys, "argv", ["/srv/talkinghead/orchestration/__main__.py", "remove", "--person", "somebody"])
    with Storage(tmp_path).held():
        said = (tmp_path / dataroot.lease(1)).read_text()
        assert '"command": "orchestration remove"' in said and "somebody" not in said


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "1e9"])
def test_a_wrong_time_is_refused(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_TTL, value)
    with pytest.raises(ValueError, match=LEASE_TTL), Storage(tmp_path).held():
        pass


def test_it_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / "lease").symlink_to(tmp_path / "outside")
    with pytest.raises(LinkError, match="lease is a link"), Storage(tmp_path / "data").held():
        pass
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("fault", [without_conditions, refusing_conditions])
def test_a_store_that_cannot_keep_writers_apart_is_refused(s3: LocalS3, tmp_path: Path, fault: object) -> None:
    storage = Storage(s3.uri(tmp_path.name))
    with answering(s3, fault), pytest.raises(RefusedError, match="conditional writes"), storage.held():  # type: ignore[arg-type]
        pass
    assert set(storage.names()) <= {"tmp"} and not storage.list("tmp")
