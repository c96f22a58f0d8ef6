"""A Ray cluster of several nodes on this machine, to try out what runs on a real one.

    head      127.0.x.1, no CPUs: the table of the cluster, its dashboard, the drivers of submitted jobs
    nodes     127.0.x.2 …, a share of the machine's CPUs each

Every node is a `ray start --block` in a session of its own, started when the one before answers: several at once make
each other miss their own time limits on a busy machine. Their addresses differ, since a driver attaches to the node
with its own address, and must not take one that may be killed. The note of it (`talkinghead.runtime.own_cluster`) is
written before the first process and after each: so whatever is killed when, `stop` finds all that was started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from talkinghead.files.lock import LockedError, folder_lock
from talkinghead.runtime.errors import MachineError
from talkinghead.runtime.own_cluster import MARK, Node, OwnCluster, boot_id, find_own_cluster, note_path, start_time
from talkinghead.runtime.ray_folder import RayFolder, make_ray_folder, remove_ray_folder

log = logging.getLogger(__name__)

START_SECONDS = 180.0
"""Time that a node has to start, in seconds."""
STARTED = "Ray runtime started"
"""What `ray start` prints when its node answers."""
DEFAULT_NODES = 2
_LETTERS = "abcdefghijklmnop"
"""Names of the nodes' folders; short, as the names of sockets in them have a limit."""
MOST_NODES = len(_LETTERS)
STORE_BYTES = 100 << 20
"""Size of a node's object store: paths, settings and counts cross it, and our packages once."""

# A stopped node counts as dead after threshold x (period + timeout) = 18 s; by Ray's own values it is 65 s.
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_enable_worker_prestart": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Ray's settings, in the environment of the nodes."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Size of a cluster on this machine."""

    nodes: int | None = None
    """Number of worker nodes (default: 2, or those of the cluster that is up)."""
    cpus: int | None = None
    """CPUs of each worker node (default: its share of this machine's, at least 1)."""

    def __post_init__(self) -> None:
        if self.nodes is not None and not 1 <= self.nodes <= MOST_NODES:
            raise ValueError(f"--nodes is {self.nodes}, must be 1 to {MOST_NODES}")
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"--cpus is {self.cpus}, must be at least 1")

    @property
    def size(self) -> int:
        """Number of worker nodes of a new cluster."""
        return self.nodes or DEFAULT_NODES

    @property
    def cpus_per_node(self) -> int:
        """CPUs of each worker node."""
        return self.cpus or max(1, len(os.sched_getaffinity(0)) // self.size)


def start(settings: LocalSettings) -> OwnCluster:
    """Start the user's cluster on this machine; one that is up already stays as it is.

    What is left of one that was killed, or of one before the machine was started anew, is cleared first.

    Raises:
        ValueError: One of another size is up, or parts of it have died.
        MachineError: A node does not start.
    """
    with _lock():
        there = find_own_cluster()
        if there is not None and _is_up(there):
            if settings.nodes not in (None, there.size):
                raise ValueError(
                    f"a cluster of {_nodes(there.size)} is up at {there.address}: make cluster-down first, or leave"
                    " NODES out to go on with it"
                )
            log.info("a cluster of %s is up already", _nodes(there.size))
            return there
        if there is not None:
            log.info("clearing what is left of a cluster that ended without make cluster-down")
            _clear(there)
        return _start(settings)


def stop() -> int:
    """End the user's cluster on this machine: all processes that were started for it, and no others.

    Returns:
        Number of processes that were ended; 0 where none is left, or there is no cluster.
    """
    with _lock():
        there = find_own_cluster()
        return 0 if there is None else _clear(there)


def _is_up(cluster: OwnCluster) -> bool:
    """Whether all nodes run; raises `ValueError` where the head does and others do not: jobs may still run on it."""
    living = cluster.living()
    if not cluster.is_up or cluster.nodes[0] not in living:
        return False
    if dead := [node.ip for node in cluster.nodes if node not in living]:
        raise ValueError(
            f"the cluster at {cluster.address} has lost {', '.join(dead)}; make cluster-down ends the rest of it, then"
            " make cluster-up starts another one"
        )
    return True


def _clear(cluster: OwnCluster) -> int:
    ended = cluster.kill()
    # Only a folder with a name of ours: the note is the user's, and anything may have happened to it.
    folder = Path(cluster.folder)
    if RayFolder.is_named(folder):
        remove_ray_folder(folder)
    note_path().unlink(missing_ok=True)
    return ended


def _start(settings: LocalSettings) -> OwnCluster:
    folder = make_ray_folder()
    net = f"127.0.{secrets.randbelow(250) + 2}"
    port, dashboard_port, client_port = _free_ports(3)
    cluster = OwnCluster(
        id=secrets.token_hex(16),
        boot=boot_id(),
        address=f"{net}.1:{port}",
        dashboard=f"http://{net}.1:{dashboard_port}",
        token=secrets.token_hex(32),
        folder=str(folder.path),
        size=settings.size,
    )
    cluster.write()
    try:
        # The head: without CPUs, so that no unit runs there.
        options = {
            "head": None,
            "node-ip-address": f"{net}.1",
            "port": port,
            "ray-client-server-port": client_port,
            "include-dashboard": "true",
            "dashboard-host": f"{net}.1",
            "dashboard-port": dashboard_port,
            "temp-dir": folder.temporary,
            "object-store-memory": STORE_BYTES,
        }
        cluster = _with_node(cluster, folder, 0, options)
        # The worker nodes, one after another.
        for number in range(settings.size):
            options = {
                "address": cluster.address,
                "node-ip-address": f"{net}.{number + 2}",
                # Not the head's: each node unpacks our packages anew, and would take them away from the others.
                "temp-dir": folder.path / _LETTERS[number],
                "object-store-memory": STORE_BYTES,
            }
            cluster = _with_node(cluster, folder, settings.cpus_per_node, options)
    except BaseException:
        _clear(cluster)
        raise
    finally:
        os.close(folder.lock)  # the nodes hold it from here on
    cluster = replace(cluster, is_up=True)
    cluster.write()
    return cluster


def _with_node(cluster: OwnCluster, folder: RayFolder, cpus: int, options: Mapping[str, object]) -> OwnCluster:
    """The note with one node more, which is started and answers.

    Args:
        cluster: The note so far.
        folder: Folder of the cluster. Every node holds its lock, so that no sweep takes it while one lives.
        cpus: CPUs of the node.
        options: Options of its `ray start`; None: without a value.
    """
    ip = str(options["node-ip-address"])
    file = folder.path / f"{ip}.log"
    shared = {"block": None, "disable-usage-stats": None, "dashboard-agent-listen-port": 0, "num-cpus": cpus}
    arguments = [f"--{name}" if value is None else f"--{name}={value}" for name, value in {**options, **shared}.items()]
    with file.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
            env=_environment(cluster),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            pass_fds=[folder.lock],
            cwd="/",
        )
    started = start_time(process.pid)
    if started is not None:
        cluster = replace(cluster, nodes=(*cluster.nodes, Node(ip=ip, pid=process.pid, start_time=started, cpus=cpus)))
        cluster.write()
    deadline = time.monotonic() + START_SECONDS
    while STARTED not in (said := file.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            late = "does not answer" if process.poll() is None else f"ended with status {process.returncode}"
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            load = os.getloadavg()[0]
            raise MachineError(
                f"the node {ip} of the cluster {late} ({last.strip()[:200]}); see that memory and disk are not full,"
                f" and that the machine is not too busy (its load is {load:.0f})"
            )
        time.sleep(0.1)
    log.info("node %s started, %d CPUs", ip, cpus)
    return cluster


def _environment(cluster: OwnCluster) -> dict[str, str]:
    """Environment of the nodes: the user's, without settings for another Ray, and with ours."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MAKE", "MFLAGS"))}
    # A submitted job is a `python -m …`: of this virtual environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    return own | SETTINGS | token | {MARK: cluster.id, "PATH": path}


def _free_ports(number: int) -> list[int]:
    """Ports at which nobody listens, outside the range that Ray gives to its workers."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """The lock of the note, for one command at a time."""
    path = note_path().with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(path))
        except LockedError as error:
            raise ValueError(f"another cluster-up or cluster-down is at work ({error.holder}): wait for it") from error
        yield


def _nodes(number: int) -> str:
    return f"{number} node" + ("" if number == 1 else "s")
