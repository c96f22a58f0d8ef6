"""One process holds a folder's lock; who may only read the folder cannot; a file that is no lock of ours stays."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from talkinghead.files.lock import LockedError, folder_lock
from tests.support.paths import ROOT

STRANGER = 54321
"""Id of a user and a group that nothing belongs to."""


@pytest.fixture
def lock() -> Iterator[Path]:
    """In a folder that other users reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="talkinghead-test-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data" / "readable").touch()
        (Path(folder) / "data" / "readable").chmod(0o644)
        yield Path(folder) / "data" / ".lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds it."""
    code = (
        "import sys, time; from pathlib import Path; from talkinghead.files.lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    arguments = [sys.executable, "-c", code, str(lock)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")


def as_user(user: int, group: int, work: Callable[[], bool]) -> bool:
    """What a function returns in a child process of another user."""
    needs_root()
    if (child := os.fork()) == 0:
        status = 2
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            status = 0 if work() else 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


def can_open(path: Path, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except PermissionError:
        return False
    return True


def can_lock(path: Path) -> bool:
    try:
        with folder_lock(path):
            return True
    except OSError:
        return False


def test_one_holder_at_a_time_until_it_is_killed(lock: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError, match=f"process {holder.pid} on ") as raised, folder_lock(lock, patience_s=0.2):
        pass
    assert raised.value.holder == f"process {holder.pid} on {socket.gethostname()}"
    holder.send_signal(signal.SIGKILL)
    with folder_lock(lock, patience_s=60):
        assert lock.read_text().split()[1] == str(os.getpid())


def test_one_holder_at_a_time_in_a_process_too(lock: Path) -> None:
    with folder_lock(lock):
        for _ in range(2):
            with pytest.raises(LockedError, match=f"process {os.getpid()} on "), folder_lock(lock):
                pass
        other = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import fcntl; fcntl.lockf(open({str(lock)!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "BlockingIOError" in other.stderr, "the refused tries have not dropped it"
    with folder_lock(lock):
        pass


def test_a_child_process_neither_inherits_nor_passes_over_it(lock: Path) -> None:
    refused, tell = os.pipe()
    with folder_lock(lock):
        if (child := os.fork()) == 0:
            try:
                with folder_lock(lock):
                    os._exit(1)
            except LockedError:
                os.write(tell, b"x")
                signal.pause()
            finally:
                os._exit(2)
        os.close(tell)
        told = os.read(refused, 1)  # this process holds it until the child has tried
        os.close(refused)
    try:
        assert told == b"x"
        with folder_lock(lock):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o555], ids=oct)
@pytest.mark.parametrize("before", [None, 0o644], ids=["new", "old"])
def test_readers_of_the_folder_cannot_hold_it(mode: int, before: int | None, lock: Path) -> None:
    """Neither a new lock, nor one that was made with the usual permissions."""
    needs_root()
    if before is not None:
        lock.touch()
        lock.chmod(before)
    lock.parent.chmod(mode)
    with folder_lock(lock):
        pass
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    reader = lock.parent / "readable"
    assert mode == 0o750 or as_user(STRANGER, STRANGER, lambda: can_open(reader, os.O_RDONLY))
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        assert not as_user(STRANGER, STRANGER, lambda flags=flags: can_open(lock, flags))
    with folder_lock(lock):
        pass


def test_writers_of_the_group_can_hold_it(lock: Path) -> None:
    needs_root()
    os.chown(lock.parent, -1, STRANGER)
    lock.parent.chmod(0o775)
    mask = os.umask(0o077)
    try:
        with folder_lock(lock):
            assert not as_user(STRANGER + 1, STRANGER, lambda: can_lock_now(lock))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o660 and lock.stat().st_gid == STRANGER
    assert as_user(STRANGER + 1, STRANGER, lambda: can_lock(lock)), "of the group"
    assert not as_user(STRANGER + 1, STRANGER + 1, lambda: can_open(lock, os.O_RDONLY)), "not of it"
    lock.parent.chmod(0o777)
    with folder_lock(lock):
        pass
    assert as_user(STRANGER + 1, STRANGER + 1, lambda: can_lock(lock))


def can_lock_now(path: Path) -> bool:
    try:
        with folder_lock(path):
            return True
    except LockedError:
        return False


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "hard link", "text", "large"])
def test_what_is_no_lock_of_ours_stays(kind: str, lock: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious" if kind != "hard link" else "process 1 on host")
    match kind:
        case "link":
            lock.symlink_to(victim)
        case "pipe":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
        case "hard link":
            lock.hardlink_to(victim)
        case "text":
            lock.write_text("process 1 on \x1b[2Jhost")
        case "large":
            lock.write_text("process 1 on " + "h" * 2000)
    content = lock.read_bytes() if kind in ("text", "large") else b""
    with pytest.raises(ValueError, match=f"{lock} is (a |no lock of ours)"), folder_lock(lock):
        pass
    assert victim.read_text() in ("precious", "process 1 on host")
    assert content == (lock.read_bytes() if content else b"")


def test_it_is_free_for_others_after_a_refusal(lock: Path) -> None:
    lock.write_text("something else")
    with pytest.raises(ValueError, match="no lock of ours"), folder_lock(lock):
        pass
    with lock.open("a") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
