"""The Ray cluster on this machine that its user has started to try out: the note of it, and its processes.

`orchestration.cluster.local` starts and ends one; whoever joins a cluster finds here whether it is that one, and its
token. The note is a file of the user's, written whole; each machine has its own, since they may share the home folder.
What it says of processes holds only while they live: each is known by its id together with the time at which the kernel
started it, and the machine's start by the kernel's name of it, so that a note from before a restart is about nothing.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from talkinghead.config import from_json
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json
from talkinghead.provenance import pretty_json

MARK = "TALKINGHEAD_LOCAL_CLUSTER"
"""Environment variable of all processes of a cluster: its id, which no other process has."""
_NOTE_BYTES = 1 << 20
_TITLES = (b"ray::", b"ray-dashboard-")
"""How the titles begin that workers, and parts of the dashboard, write over their command line and environment."""
_EMPTY_ROUNDS = 4
"""Looks, 50 ms apart, that have to find no process before all count as ended."""
_START_TIME, _STATE, _SESSION = 22 - 3, 3 - 3, 6 - 3  # fields of /proc/<id>/stat after the name, see proc(5)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the cluster."""

    ip: str
    """Its address, 127.0.x.y."""
    pid: int
    """Process id of its `ray start`, which is also the number of its session."""
    start_time: int
    """Start of that process in clock ticks since the machine's start."""
    cpus: int


@dataclass(frozen=True, kw_only=True)
class OwnCluster:
    """The note of a cluster."""

    id: str
    """Value of `MARK` in the environment of its processes."""
    boot: str
    """The kernel's name of the machine's start."""
    address: str
    """`HOST:PORT`, for RAY_ADDRESS."""
    dashboard: str
    """`http://HOST:PORT`, which takes submitted jobs."""
    token: str
    """Token that Ray asks for."""
    folder: str
    """Folder of its sockets and logs."""
    size: int
    """Number of worker nodes that were asked for."""
    nodes: tuple[Node, ...] = ()
    """Head, then worker nodes, as far as they have been started."""
    is_up: bool = False
    """Whether all of them have been started."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{16,64}", self.id) or not re.fullmatch("[0-9a-f]{32,128}", self.token):
            raise ValueError("its id or its token is none of ours")

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the machine has not been started anew since; then processes of it may live."""
        return self.boot == boot_id()

    def living(self) -> list[Node]:
        """Nodes whose `ray start` runs."""
        if not self.is_of_this_boot:
            return []
        return [node for node in self.nodes if start_time(node.pid) == node.start_time]

    def processes(self) -> dict[int, int]:
        """Process id → start time of all processes of the cluster, also where their parents were killed.

        A process inherits the mark with the environment of its parent. Some of Ray's write their titles over
        theirs; those still are in the session that a node's `ray start` began.
        """
        if not self.is_of_this_boot:
            return {}
        sessions = {node.pid for node in self.nodes if start_time(node.pid) in (None, node.start_time)}
        mark = f"{MARK}={self.id}".encode()
        found = {}
        for pid in _own_processes():
            try:
                started = start_time(pid)
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                worker = _session(pid) in sessions and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_TITLES)
            except OSError:  # it has ended
                continue
            if started is not None and pid != os.getpid() and (mark in environment or worker):
                found[pid] = started
        return found

    def kill(self, patience_s: float = 60.0) -> int:
        """Kill all processes of the cluster; returns how many there were.

        Args:
            patience_s: Time to wait until the kernel has ended all of them, in seconds.

        Raises:
            TimeoutError: Some do not end.
        """
        killed: set[tuple[int, int]] = set()
        deadline = time.monotonic() + patience_s
        # One that was just being started has no environment for a moment, and shows in a later round.
        empty = 0
        while empty < _EMPTY_ROUNDS:
            # One that is ending has no environment any more, but still runs for a moment.
            ending = {pid: started for pid, started in killed if start_time(pid) == started}
            found = self.processes() | ending
            if found and time.monotonic() > deadline:
                raise TimeoutError(f"processes {', '.join(map(str, sorted(found)))} do not end, though they are killed")
            for pid, started in found.items():
                _kill(pid, started)
            killed |= set(found.items())
            empty = 0 if found else empty + 1
            time.sleep(0.05)
        return len(killed)

    def write(self) -> None:
        """Replace the note, which only its user can read."""
        path = note_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, pretty_json(asdict(self)))
        path.chmod(0o600)


def note_path() -> Path:
    """File of this machine's note: $XDG_STATE_HOME/talkinghead/cluster/<host>.json (~/.local/state when unset)."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    host = re.sub("[^A-Za-z0-9._-]", "_", socket.gethostname())
    return Path(os.path.expanduser(base)).absolute() / "talkinghead" / "cluster" / f"{host}.json"  # noqa: PTH111 (never raises)


def find_own_cluster() -> OwnCluster | None:
    """The noted cluster, which may have ended since; None where there is no note.

    Raises:
        ValueError: The file is no note of ours.
    """
    path = note_path()
    try:
        value = read_json(path, _NOTE_BYTES)
    except (FileNotFoundError, NotADirectoryError):  # the home folder may be no folder at all
        return None
    try:
        return from_json(OwnCluster, value)
    except ValueError as error:
        raise ValueError(f"{path} is no note of a cluster: {error}; remove it when no process of Ray runs") from None


def own_token(address: str) -> str | None:
    """Token of the user's own cluster, if it is the one at this address (of its nodes or its dashboard)."""
    found = find_own_cluster()
    return found.token if found and address in (found.address, found.dashboard) else None


def boot_id() -> str:
    """The kernel's name of the machine's start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since the machine's start; None if it does not run, or has ended unreaped."""
    fields = _stat(pid)
    return None if fields is None or fields[_STATE] in ("Z", "X") else int(fields[_START_TIME])


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[_SESSION])


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<id>/stat after the program's name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None


def _own_processes() -> Iterator[int]:
    """Ids of this user's processes."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == os.geteuid():
                    yield int(entry.name)
            except OSError:  # it has ended
                continue


def _kill(pid: int, started: int) -> None:
    """Kill a process, unless it has ended and its id belongs to another one."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The handle is of one process for good; which one it is, its start tells.
        if start_time(pid) == started:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
