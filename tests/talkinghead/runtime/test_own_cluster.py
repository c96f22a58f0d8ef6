"""The note of the user's own cluster: which processes are its own, also where their parents are gone, and which not."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkinghead.runtime.own_cluster import (
    MARK,
    Node,
    OwnCluster,
    boot_id,
    find_own_cluster,
    note_path,
    own_token,
    start_time,
)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user's, the worker of another Ray."""
    process = subprocess.Popen(["bash", "-c", "exec -a ray::IDLE sleep 600"], start_new_session=True)
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"ray::"):
        assert process.poll() is None
    yield process
    process.kill()
    process.wait()


def note(**changes: object) -> OwnCluster:
    values = {
        "id": secrets.token_hex(16), "boot": boot_id(), "address": "127.0.9.1:6379", "token": secrets.token_hex(32),
        "dashboard": "http://127.0.9.1:8265", "folder": "/tmp/th-ray-12345678", "size": 1,
    }  # fmt: skip
    return OwnCluster(**(values | changes))  # pyright: ignore[reportArgumentType]


def started(cluster: OwnCluster, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=os.environ | {MARK: cluster.id}, start_new_session=True)


def test_note_comes_back_and_only_its_user_can_read_it() -> None:
    assert find_own_cluster() is None
    cluster = note(nodes=(Node(ip="127.0.9.1", pid=1, start_time=2, cpus=0),), is_up=True)
    cluster.write()
    assert find_own_cluster() == cluster
    assert note_path().stat().st_mode & 0o777 == 0o600
    assert own_token(cluster.address) == own_token(cluster.dashboard) == cluster.token
    assert own_token("127.0.9.1:6380") is None


def test_each_machine_has_a_note_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may share the home folder: what one does must not lose the cluster of another one."""
    cluster = note()
    cluster.write()
    here = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "../other machine")
    assert find_own_cluster() is None and own_token(cluster.address) is None
    note().write()
    monkeypatch.setattr(socket, "gethostname", lambda: here)
    assert find_own_cluster() == cluster and len(list(note_path().parent.iterdir())) == 2


def test_damaged_note_is_named() -> None:
    note().write()
    note_path().write_text("{}")
    with pytest.raises(ValueError, match="is no note of a cluster"):
        find_own_cluster()


def test_a_process_whose_parent_was_killed_is_found_and_ended(innocent: subprocess.Popen[bytes]) -> None:
    cluster = note()
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdin.read()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {MARK: cluster.id},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert cluster.processes().keys() == {parent.pid, child}
    parent.kill()
    parent.wait()
    assert cluster.processes().keys() == {child}
    assert cluster.kill() == 1
    assert start_time(child) is None and cluster.processes() == {}
    assert innocent.poll() is None


@pytest.mark.parametrize("title", ["ray::IDLE", "ray-dashboard-JobHead-0"])
def test_a_process_that_wrote_over_its_environment_is_known_by_its_session(title: str) -> None:
    cluster = note()
    # As if the title of the process had taken the place of its environment.
    code = "import time; time.sleep(600)"
    leader = started(cluster, "bash", "-c", f"env -i bash -c 'exec -a {title} {sys.executable} -c \"{code}\"' & wait")
    found = note(id=cluster.id, nodes=(Node(ip="a", pid=leader.pid, start_time=start_time(leader.pid) or 0, cpus=0),))
    deadline = time.monotonic() + 60
    while not any(pid != leader.pid for pid in found.processes()):
        assert leader.poll() is None and time.monotonic() < deadline
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    assert len(found.processes()) == 1
    assert found.kill() == 1 and found.processes() == {}


def test_an_id_that_another_process_has_now_is_left_alone(innocent: subprocess.Popen[bytes]) -> None:
    """Also where that process has a session of the same number, and a title like a worker's."""
    began = start_time(innocent.pid)
    assert began is not None
    reused = note(nodes=(Node(ip="a", pid=innocent.pid, start_time=began - 1, cpus=0),))
    assert reused.living() == [] and reused.processes() == {} and reused.kill() == 0
    assert innocent.poll() is None
    assert note(nodes=(Node(ip="a", pid=innocent.pid, start_time=began, cpus=0),)).living()


def test_a_note_from_before_a_restart_is_about_no_process() -> None:
    old = note(boot="00000000-0000-0000-0000-000000000000")
    process = started(old, "sleep", "600")
    assert old.processes() == {} and old.kill() == 0 and old.living() == []
    assert process.poll() is None
    process.kill()
    process.wait()
