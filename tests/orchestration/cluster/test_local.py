"""A cluster of two nodes on this machine: started, used by submitted jobs, broken, and ended without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestration.cluster.local import LocalSettings
from talkinghead.runtime.own_cluster import MARK, Node, OwnCluster, find_own_cluster, note_path, start_time
from tests.support.job_commands import ROOT, Command
from tests.support.media_files import write_video

CLUSTER = ("orchestration.cluster",)


@pytest.fixture(scope="module")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture
def up(_own_state: None, command: Command) -> Iterator[OwnCluster]:
    """The cluster that is up, the same for one test after another as long as none breaks it."""
    done = command(*CLUSTER, "up", "--nodes", "2", "--cpus", "1")
    found = find_own_cluster()
    assert found is not None and found.is_up and done.stdout == f"{found.address}\n"
    return found


@pytest.fixture(scope="module", autouse=True)
def _ended(_own_state: None, command: Command) -> Iterator[None]:
    yield
    command(*CLUSTER, "down")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes a folder with short videos in which no face is, which ingest rejects; each one of other bytes."""

    def make(number: int) -> Path:
        folder = tmp_path_factory.mktemp("clips")
        for seed in range(number):
            noise = np.random.default_rng(seed).integers(0, 255, (30, 64, 64, 3), np.uint8)
            write_video(folder / f"{seed}.mp4", noise)
        return folder

    return make


def all_of(cluster: OwnCluster) -> set[tuple[int, int]]:
    """Process id and start of everything that descends from the nodes, found in another way: by parents."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {node.pid for node in cluster.nodes}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    # Some of them are short, and have ended by now.
    return {(pid, began) for pid in found if (began := start_time(pid)) is not None}


def test_a_second_up_says_that_one_is_up(up: OwnCluster, command: Command) -> None:
    again = command(*CLUSTER, "up", "--nodes", "2")
    assert again.stdout == f"{up.address}\n" and "is up already" in again.stderr
    other = command(*CLUSTER, "up", "--nodes", "3", check=False)
    assert other.returncode == 2 and "a cluster of 2 nodes is up" in other.stderr
    assert find_own_cluster() == up
    # Nothing listens on an address that other machines reach without its token, and nobody else can read it.
    assert note_path().stat().st_mode & 0o077 == 0 and Path(up.folder).stat().st_mode & 0o077 == 0


def test_a_job_runs_there_and_its_status_is_told(
    up: OwnCluster, clips: Callable[[int], Path], tmp_path: Path, command: Command
) -> None:
    data = tmp_path / "data"
    done = command(*CLUSTER, "submit", "--job", f"ingest SOURCE={clips(2)} DATA={data}")
    name = done.stdout.strip()
    assert "ingest: 2 units" in done.stderr and done.stderr.rstrip().endswith(f"job {name} is done")
    # A node that unpacks our packages removes those that lie there: each has a place of its own.
    places = {
        path for path in Path(up.folder).glob("*/session_2*/runtime_resources/working_dir_files") if path.is_dir()
    }
    assert len(places) == len(up.nodes) == 3
    # The status, from DATA alone and with the cluster.
    told = json.loads(command("orchestration", "status", "--data", data, "--json").stdout)
    (ingest,) = told["jobs"]
    assert {key: ingest[key] for key in ("planned", "rejected", "pending", "quarantined")} == {
        "planned": 2, "rejected": 2, "pending": 0, "quarantined": 0,
    }  # fmt: skip
    (record,) = told["commands"]
    assert record["ray_job"] == name and record["status"] == 0 and record["jobs"]["ingest"]["units"] == 2
    assert told["cluster"] is None and not told["running"]
    lines = command("orchestration", "status", "--data", data, "--ray-address", up.address).stdout
    assert "3 nodes live (2 CPUs, 0 GPUs), 0 are lost" in lines and f"job {name} (ingest SOURCE=" in lines
    # Its log can be read again.
    again = command(*CLUSTER, "follow", name)
    assert "ingest: 2 units" in again.stderr and again.returncode == 0


def test_exit_status_is_the_jobs(up: OwnCluster, tmp_path: Path, command: Command) -> None:
    done = command(*CLUSTER, "submit", "--job", f"annotate DATA={tmp_path / 'none'}", check=False)
    assert done.returncode == 2 and "nothing is ingested" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: job ")], done.stderr
    unknown = command(*CLUSTER, "follow", "nobody", check=False)
    assert unknown.returncode == 2 and "there is no job nobody" in unknown.stderr


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another cluster of the user's."""
    process = subprocess.Popen(["sleep", "600"], env=os.environ | {MARK: "0" * 32})
    yield process
    process.kill()
    process.wait()


def test_down_leaves_nothing(up: OwnCluster, command: Command, bystander: subprocess.Popen[bytes]) -> None:
    processes = all_of(up)
    assert len(processes) > 6
    done = command(*CLUSTER, "down")
    assert "processes ended" in done.stdout
    assert not [pid for pid, began in processes if start_time(pid) == began]
    assert not Path(up.folder).exists() and not note_path().exists()
    assert command(*CLUSTER, "down").stdout == "no cluster is up\n"
    assert bystander.poll() is None


def test_stale_notes_are_cleared(
    _own_state: None, command: Command, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    """A note from before the machine was started anew: its process ids are those of others now."""
    began = start_time(bystander.pid)
    assert began is not None
    OwnCluster(
        id="0" * 32, boot="another", address="127.0.9.1:1", dashboard="http://127.0.9.1:2", token="b" * 64,
        folder=str(tmp_path), size=1, is_up=True,
        nodes=(Node(ip="127.0.9.1", pid=bystander.pid, start_time=began, cpus=0),),
    ).write()  # fmt: skip
    assert command(*CLUSTER, "down").stdout == "no cluster is up\n"
    assert bystander.poll() is None and tmp_path.exists() and not note_path().exists()


def test_wrong_sizes_are_refused() -> None:
    for wrong in ({"nodes": 0}, {"nodes": 17}, {"cpus": 0}):
        with pytest.raises(ValueError, match="must be"):
            LocalSettings(**wrong)


# --- broken clusters --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cluster
def test_up_and_down_after_parts_were_killed(up: OwnCluster, command: Command) -> None:
    """The parents of everything are gone: what they have started is found all the same, and is cleared by the next."""
    processes = all_of(up)
    for node in up.nodes:
        os.kill(node.pid, signal.SIGKILL)
    wait_for(lambda: not up.living())
    second = command(*CLUSTER, "up", "--nodes", "1", "--cpus", "1")
    assert "clearing what is left" in second.stderr
    now = find_own_cluster()
    assert now is not None and now.id != up.id
    assert not [pid for pid, began in processes if start_time(pid) == began]
    # A worker node alone: jobs may run on the others, so nothing is cleared unasked.
    os.kill(now.nodes[1].pid, signal.SIGKILL)
    wait_for(lambda: len(now.living()) == 1)
    third = command(*CLUSTER, "up", "--nodes", "1", check=False)
    assert third.returncode == 2 and f"has lost {now.nodes[1].ip}" in third.stderr
    command(*CLUSTER, "down")
    assert now.processes() == {}


@pytest.mark.slow
@pytest.mark.cluster
def test_up_that_was_killed_leaves_nothing_after_down(_own_state: None, command: Command) -> None:
    command(*CLUSTER, "down")
    starting = subprocess.Popen([sys.executable, "-m", *CLUSTER, "up"], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: (found := find_own_cluster()) is not None and bool(found.nodes))
    starting.kill()
    starting.wait()
    found = find_own_cluster()
    assert found is not None and not found.is_up and found.processes()
    command(*CLUSTER, "down")
    assert found.processes() == {} and not Path(found.folder).exists()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_ends_though_a_node_is_killed(
    up: OwnCluster, clips: Callable[[int], Path], tmp_path: Path, command: Command
) -> None:
    data = tmp_path / "data"
    arguments = ["submit", "--job", f"ingest SOURCE={clips(16)} DATA={data}"]
    job = subprocess.Popen([sys.executable, "-m", *CLUSTER, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(data.glob("records/ingest/*/*.json")) or job.poll() is not None)
    assert job.poll() is None
    raylet = [
        pid
        for pid, _ in all_of(replace(up, nodes=(up.nodes[2],)))
        if b"raylet/raylet\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(raylet[0], signal.SIGKILL)
    errors = job.communicate()[1]
    assert job.returncode == 0, errors
    told = json.loads(command("orchestration", "status", "--data", data, "--json", "--ray-address", up.address).stdout)
    assert told["jobs"][0]["rejected"] == 16 and told["jobs"][0]["quarantined"] == 0
    assert [node["ip"] for node in told["cluster"]["nodes"] if not node["is_alive"]] == [up.nodes[2].ip]
    command(*CLUSTER, "down")
    assert up.processes() == {}


@pytest.mark.slow
@pytest.mark.cluster
def test_ctrl_c_leaves_a_job_running_and_stop_ends_it(
    up: OwnCluster, clips: Callable[[int], Path], tmp_path: Path, command: Command
) -> None:
    data = tmp_path / "data"
    arguments = ["submit", "--job", f"ingest SOURCE={clips(24)} DATA={data}"]
    watcher = subprocess.Popen(
        [sys.executable, "-m", *CLUSTER, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(data.glob("records/ingest/*/*.json")) or watcher.poll() is not None)
    watcher.send_signal(signal.SIGINT)
    last = watcher.communicate()[1].splitlines()[-1]
    assert watcher.returncode == 1 and "goes on; follow it with python -m" in last
    name = last.split()[2]
    records = len(list(data.glob("records/ingest/*/*.json")))
    wait_for(lambda: len(list(data.glob("records/ingest/*/*.json"))) > records)
    assert command(*CLUSTER, "stop", name).stdout == f"{name} is being stopped\n"
    ended = command(*CLUSTER, "follow", name, check=False)
    assert ended.returncode == 1 and f"error: job {name} was stopped" in ended.stderr


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
