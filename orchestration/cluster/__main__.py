"""`python -m orchestration.cluster <command>`: a Ray cluster on this machine to try out, and jobs for any cluster."""

from __future__ import annotations

import functools
import sys
from typing import Annotated

import tyro

from orchestration.cluster import local, submitted
from orchestration.cluster.local import LocalSettings
from talkinghead.runtime.command_line import AGAIN, call_command, end_by_policy
from talkinghead.runtime.ray_cluster import cluster_address

PROG = "python -m orchestration.cluster"
Address = Annotated[
    str | None,
    tyro.conf.arg(
        help="Address of the cluster: HOST:PORT, or http://HOST:PORT of its dashboard (default: $RAY_ADDRESS, else the"
        " cluster of make cluster-up)."
    ),
]
Name = Annotated[str, tyro.conf.arg(help="Name of the job, which submit has printed.")]


def up(settings: Annotated[LocalSettings, tyro.conf.arg(name="")]) -> str:
    """Start a Ray cluster on this machine: a head without CPUs, and worker nodes. Prints its RAY_ADDRESS."""
    cluster = local.start(settings)
    print(f"its dashboard: {cluster.dashboard}, its logs: {cluster.folder}", file=sys.stderr)
    print("use it with RAY_ADDRESS=… after any target, or make submit; end it with make cluster-down", file=sys.stderr)
    return cluster.address


def down() -> str:
    """End the cluster that `up` has started, with every process of it, also when parts of it were killed."""
    ended = local.stop()
    return f"{ended} processes ended" if ended else "no cluster is up"


def submit(
    job: Annotated[
        str, tyro.conf.arg(help='A Make target with its variables: "reannotate ANN=v3 DATA=s3://bucket/x".')
    ],
    ray_address: Address = None,
    wait: Annotated[bool, tyro.conf.arg(help="Follow the job's log until it ends.")] = True,
) -> str:
    """Send a job to a cluster, follow its log, and end with its exit status. Ctrl-C leaves it running."""
    command = submitted.job_command(job)
    address = _address(ray_address)
    client = submitted.client_of(address)
    name = submitted.send(client, address, job, command)
    print(f"job {name}: {' '.join(command)}", file=sys.stderr)
    if wait:
        submitted.follow_to_success(client, address, name, PROG)
    return name


def follow(name: Annotated[Name, tyro.conf.Positional], ray_address: Address = None) -> str:
    """Print the log of a job, from its beginning, until it ends; end with its exit status. Ctrl-C leaves it running."""
    address = _address(ray_address)
    submitted.follow_to_success(submitted.client_of(address), address, name, PROG)
    return name


def stop(name: Annotated[Name, tyro.conf.Positional], ray_address: Address = None) -> str:
    """Stop a job; what it has done stays, and the same job goes on from there."""
    address = _address(ray_address)
    running = submitted.stop(submitted.client_of(address), address, name)
    return f"{name} is being stopped" if running else f"{name} had ended"


def _address(given: str | None) -> str:
    if (address := cluster_address(given)) is not None:
        return address
    if (own := local.find_own_cluster()) is not None and own.living():
        return own.address
    raise ValueError("name the cluster with RAY_ADDRESS=HOST:PORT, or start one on this machine with make cluster-up")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    commands = (up, down, submit, follow, stop)
    call = functools.partial(call_command, commands, arguments, prog=PROG, about=__doc__)
    explain = lambda error: error.ending if isinstance(error, submitted.JobEndedError) else None  # noqa: E731
    return end_by_policy(call, arguments, advice=AGAIN, explain=explain)


if __name__ == "__main__":
    sys.exit(main())
