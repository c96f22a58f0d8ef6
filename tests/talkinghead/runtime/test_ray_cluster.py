"""What Ray is told: what goes to a cluster, at which address one is looked for, and who else may use a private one."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from talkinghead.runtime.ray_cluster import _kill_processes_of, cluster_address, our_packages, ray_cluster
from talkinghead.runtime.ray_folder import RayFolder, make_ray_folder
from tests.support.paths import ROOT
from tests.support.small_disk import run_with_mounts


def test_package_holds_our_packages_only(tmp_path: Path) -> None:
    """Whatever else lies next to them: the environment, media, what git ignores."""
    from ray._private.runtime_env.packaging import create_package

    root = tmp_path / "root"
    for path in ("talkinghead/media/clip.py", "shards/__init__.py", "talkinghead/__init__.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    for path in (".venv/x.py", ".git/config", "build/x", "data/clip.mp4", "talkinghead/__pycache__/a.pyc", "notes.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    create_package(str(root), tmp_path / "package.zip", True, excludes=["__pycache__", *our_packages(root)["excludes"]])
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert files == {"talkinghead/media/clip.py", "shards/__init__.py", "talkinghead/__init__.py"}


def test_an_empty_address_is_a_private_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray has it, and as a Makefile passes on a variable that nobody set."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(None) is None and cluster_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_address(None) == "head:6379" and cluster_address("other:1") == "other:1"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster_address(None) is None


PRIVATE = """
import contextlib, json, os, pathlib, sys, time
from talkinghead.runtime.ray_cluster import ray_cluster
from tests.support.listening import process_tree

def sockets():
    listening, ours, arguments = {}, [], ""
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[f"socket:[{fields[9]}]"] = fields[1]
    for pid in process_tree(os.getpid()):
        with contextlib.suppress(OSError):  # it has just ended
            arguments += pathlib.Path(f"/proc/{pid}/cmdline").read_text()
            for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    ours.append(os.readlink(file))
    return [listening[name] for name in ours if name in listening], arguments

def facts():
    import ray
    from ray._private import worker
    values = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    deadline = time.monotonic() + 120
    while len((found := sockets())[0]) < 8 and time.monotonic() < deadline:  # some of its processes take longer
        time.sleep(0.1)
    return {
        "token": values["RAY_AUTH_TOKEN"],
        "worker": values,
        "folder": worker._global_node.get_session_dir_path(),
        "gcs": ray.get_runtime_context().gcs_address,
        "jobs": str(worker.global_worker.gcs_client.get_all_job_info()),
        "arguments": found[1],
        "listening": found[0],
    }

def told():
    return {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")}

before = told()
with ray_cluster(None, 1):
    print(json.dumps(facts()), flush=True)
    sys.stdin.readline()
with ray_cluster(None, 1):  # another one in the same process
    print(json.dumps(facts()), flush=True)
assert told() == before
"""


@dataclass
class Private:
    """Two private Rays of a process, of which the first runs until it is told to end."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    """A private Ray in an environment that would open it, and with credentials in the command line."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("the-token-of-everybody")
    process = subprocess.Popen(
        [sys.executable, "-c", PRIVATE, "--data=s3://AKIDAKID:DUMMYSECRET@bucket/x"],
        cwd=ROOT,
        env=os.environ
        | {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of-everybody", "RAY_AUTH_TOKEN_PATH": str(token)}
        | {"RAY_USAGE_STATS_ENABLED": "1", "AWS_SECRET_ACCESS_KEY": "for-the-workers"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Private(process, json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def test_private_ray_listens_on_the_loopback_address_only(private: Private) -> None:
    """Ray's own switch for this is meant for Windows and macOS: this notices when it no longer works."""
    assert len(private.facts["listening"]) >= 8
    hosts = {address.partition(":")[0] for address in private.facts["listening"]}
    assert hosts <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_private_ray_has_a_token_of_its_own(private: Private) -> None:
    """Whatever the environment says; and it is in no command line and in no table."""
    token = private.facts["token"]
    assert len(token) == 64 and private.facts["worker"]["RAY_AUTH_MODE"] == "token"
    assert token not in private.facts["arguments"] and token not in private.facts["jobs"]
    for given in (None, "of-everybody", "the-token-of-everybody", token):
        assert _answers(private.facts["gcs"], given) == (given == token)


def _answers(address: str, token: str | None) -> bool:
    """Whether Ray's head lists the cluster's jobs for whoever has a token."""
    call = "/ray.rpc.JobInfoGcsService/GetAllJobInfo"
    given = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=60, metadata=given)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
            return False
    return True


def test_private_ray_keeps_its_files_from_others(private: Private) -> None:
    folder = Path(private.facts["folder"])
    own = folder.parents[1]
    assert own.name.startswith("th-ray-") and stat.S_IMODE(own.stat().st_mode) == 0o700
    sockets = [path for path in folder.rglob("*") if path.is_socket()]
    assert {"raylet", "plasma_store"} <= {path.name for path in sockets}
    if os.geteuid() == 0:
        taken = ["mv", str(sockets[0]), f"{sockets[0]}.taken"]
        done = subprocess.run(taken, user=65534, group=65534, extra_groups=[], capture_output=True, text=True)
        assert "ermission denied" in done.stderr and sockets[0].exists()


def test_credentials_reach_workers_by_the_environment_only(private: Private) -> None:
    assert private.facts["worker"]["AWS_SECRET_ACCESS_KEY"] == "for-the-workers"
    for shown in (private.facts["jobs"], private.facts["arguments"]):
        assert "DUMMYSECRET" not in shown and "AKIDAKID" not in shown and "for-the-workers" not in shown
    assert "--data=s3://" in private.facts["jobs"], "Ray shows the command line, so it has to be blanked"


def test_private_ray_sends_nothing_to_its_makers(private: Private) -> None:
    assert private.facts["worker"]["RAY_USAGE_STATS_ENABLED"] == "0"


def test_private_ray_leaves_nothing(private: Private) -> None:
    """The last test of this one: the first Ray ends, another one starts in the process and ends, too."""
    rest, _ = private.process.communicate("\n")
    second = json.loads(rest)
    assert private.process.returncode == 0
    assert second["token"] != private.facts["token"]
    for facts in (private.facts, second):
        assert not Path(facts["folder"]).parents[1].exists()


def test_address_with_a_password_is_not_shown() -> None:
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN") as caught, ray_cluster("user:word@host:6379", 1):
        pass
    assert "word@" not in str(caught.value)


START = """
import sys
from pathlib import Path
from talkinghead.runtime.command_line import run_command_line

def start() -> str:
    from talkinghead.runtime.ray_cluster import ray_cluster
    with ray_cluster(None, 1):
        import ray
        from ray._private import worker
        folder = worker._global_node.get_session_dir_path()
        heads = [file for file in Path("/proc").glob("[0-9]*/cmdline") if is_head_of_ours(file)]
        return f"{ray.get(ray.remote(lambda: 7).remote())} {len(heads)} {folder}"

def is_head_of_ours(file: Path) -> bool:
    import os
    try:
        parent = int((file.parent / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == os.getpid() and b"gcs_server" in file.read_bytes()
    except OSError:
        return False

sys.exit(run_command_line(start, [], prog="start"))
"""
"""Program that starts a private Ray: prints what a task returns, the number of heads that run, and the folder."""


@pytest.mark.slow
def test_private_ray_is_tried_again_from_nothing() -> None:
    """Its port is taken, and is free when the first try has failed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens not: Ray's processes that ask there are refused
        process = subprocess.Popen(
            [sys.executable, "-c", START],
            cwd=ROOT,
            env=os.environ | {"RAY_GCS_SERVER_PORT": str(taken.getsockname()[1])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            taken.close()
            out, rest = process.communicate()
        finally:
            process.kill()
            process.wait()
    assert first == "Ray did not start (try 1 of 3): Failed to start GCS.; trying again\n", rest
    # On a busy machine the second may fail, too; nothing of Ray's own is said.
    assert all(line.startswith("Ray did not start (try 2 of 3): ") for line in rest.splitlines()), rest
    value, heads, folder = out.split()
    assert (process.returncode, value, heads) == (0, "7", "1")
    assert not Path(folder).parents[1].exists()


def test_processes_of_a_failed_start_do_not_stay(tmp_path: Path) -> None:
    """All that have its folder in their command lines, and no others."""
    folder, other = RayFolder(tmp_path / "th-ray-a", -1), RayFolder(tmp_path / "th-ray-b", -1)
    wait = [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"]
    places = (f"--session={folder.temporary}/session_1", str(folder.temporary), f"--log={other.temporary}")
    started = [subprocess.Popen([*wait, place], stdout=subprocess.PIPE) for place in places]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == b"\n"
        _kill_processes_of(folder)
        assert [process.wait() for process in started[:2]] == [-signal.SIGKILL] * 2 and started[2].poll() is None
    finally:
        for process in started:
            process.kill()
            process.communicate()


FULL = """
place=$1
mount -t tmpfs -o nr_inodes=3 none "$place" || exit 77
RAY_TMPDIR="$place" "$PYTHON" -c "$START" || echo "status $?"
ls -A "$place" | wc -l
"""


def test_private_ray_that_never_starts_is_one_clear_error(tmp_path: Path) -> None:
    """The disk of its files has room for two folders: three tries, a line each, and what to do."""
    place = tmp_path / "r"
    if len(os.fsencode(place)) > 40:  # names of sockets in it have a limit
        place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.mkdir(mode=0o700, exist_ok=True)
    try:
        done = run_with_mounts(f"set -- '{place}'\n{FULL}", env={"START": START, "PYTHON": sys.executable})
    finally:
        place.rmdir()
    assert done.stdout.split() == ["status", "1", "1"], done.stdout + done.stderr
    *tries, last = done.stderr.splitlines()
    for number, line in enumerate(tries, 1):
        assert line.startswith(f"Ray did not start (try {number} of 3): ") and "No space left on device" in line
        assert line.endswith("; trying again")
    assert len(tries) == 2 and last.startswith("error: cannot start Ray: ") and "No space left on device" in last
    assert "(3 tries, logs below " in last and "wait until the machine is less busy" in last


@pytest.mark.slow
def test_private_ray_whose_processes_die_is_one_clear_error() -> None:
    """Its processes cannot write more than some bytes of their logs."""
    limited = "    import resource\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n    with ray_cluster"
    code = START.replace("    with ray_cluster", limited)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and line.startswith("error: cannot start Ray: "), done.stderr
    logs = Path(line.partition("logs below ")[2].partition(")")[0])
    assert list(logs.rglob("gcs_server.out"))
    make_ray_folder().remove()
    assert not logs.exists(), "the next start sweeps them"
