"""A Ray cluster of one node, started for tests as its owner would start it, with a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one node."""

    address: str
    session: int
    """Process id of its first process, and number of its session."""
    folder: Path
    token: str

    def environment(self) -> dict[str, str]:
        """Environment of a driver, with the face model's folder, which the cluster's own environment does not name."""
        return os.environ | self.variables()

    def variables(self) -> dict[str, str]:
        """Environment variables by which a driver joins it."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextlib.contextmanager
def ray_head(cpus: int, **variables: str) -> Iterator[Head]:
    """Context with a cluster.

    Args:
        cpus: Number of its CPUs.
        variables: Environment variables of its processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket names may have 107 characters
    port, token = _free_port(), secrets.token_hex(32)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "ray-client-server-port": _free_port(),
        "dashboard-agent-listen-port": 0,
        "num-cpus": cpus,
        "object-store-memory": 100_000_000,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TALKINGHEAD", "RAY_"))}
    log = folder / "head.log"
    with log.open("w+") as stream:
        server = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "HOME": str(folder)} | variables,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 240
            while "Ray runtime started" not in log.read_text():
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield Head(f"127.0.0.1:{port}", server.pid, folder, token)
        finally:
            for pid in processes(server.pid):  # only what was started here: `ray stop` would end everybody's Ray
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.wait()
            shutil.rmtree(folder, ignore_errors=True)


def processes(session: int) -> dict[int, str]:
    """Process id → title of every process of a session."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split() if folder.name.isdigit() else []
            if fields and int(fields[3]) == session and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
