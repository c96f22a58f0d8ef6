"""Overview of a cluster for people: its nodes, living and lost, and its submitted jobs, as its dashboard tells them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestration.cluster.submitted import client_of, told

MOST_JOBS = 10


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """One node."""

    ip: str
    is_head: bool
    is_alive: bool
    why: str
    """Why it is dead, in Ray's words; empty for one that lives."""
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One submitted job."""

    name: str
    job: str
    """The job as it was submitted."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    started: str | None
    """UTC."""
    exit_status: int | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """State of a cluster."""

    address: str
    nodes: list[NodeState]
    """Head first, then by address; nodes that are gone, too, as long as Ray remembers them."""
    jobs: list[JobState]
    """The newest submitted jobs, the last first."""


def overview(address: str) -> Overview:
    """Ask a cluster.

    Args:
        address: `HOST:PORT`, or `http://HOST:PORT` of its dashboard.

    Raises:
        ValueError: Nothing answers there, or it does not let this process in.
        MachineError: It does not answer any more.
    """
    client = client_of(address)
    from ray.util.state import list_nodes

    with told(address):
        nodes: list[Any] = list_nodes(address=client.get_address(), limit=10_000)
        jobs = [job for job in client.list_jobs() if job.submission_id]
    states = [
        NodeState(
            ip=node.node_ip,
            is_head=node.is_head_node,
            is_alive=node.state == "ALIVE",
            why="" if node.state == "ALIVE" else node.state_message or "unknown",
            cpus=node.resources_total.get("CPU", 0.0),
            gpus=node.resources_total.get("GPU", 0.0),
        )
        for node in nodes
    ]
    jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
    return Overview(
        address=address,
        nodes=sorted(states, key=lambda node: (not node.is_head, node.ip)),
        jobs=[
            JobState(
                name=job.submission_id or "",
                job=(job.metadata or {}).get("job", job.entrypoint),
                status=str(job.status.value),
                started=_utc(job.start_time),
                exit_status=job.driver_exit_code,
            )
            for job in jobs[:MOST_JOBS]
        ],
    )


def _utc(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
