"""Ranks that SLURM's srun starts, one task each: their place and their meeting point from the `SLURM_*` variables.

Only a job step of several tasks makes ranks. In a batch script itself, which runs once, and in a step of one task a
training is a single process, and may start several of its own (`--workers`). Where each task is a torchrun, that one
gives the places.

The ranks meet as those of a torchrun do, at a TCPStore of rank 0, which is open to the network: for a closed one only
(`train.launch.torchrun`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LOWEST_PORT, _PORTS = 10_000, 20_000  # below those that Linux gives to connections
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_HOST_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\],]+)")
_MOST = 1 << 16
"""Most hosts, and ranks, that are believed."""


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """Place of a task among those of its job step."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    """Host of rank 0."""
    port: int
    """Port at which the ranks meet, the same for all tasks of the step and another one for each job and step."""

    def variables(self) -> dict[str, str]:
        """Environment variables with the place, by the names that torchrun has for them."""
        numbers = {"RANK": self.rank, "WORLD_SIZE": self.world, "LOCAL_RANK": self.local_rank}
        numbers |= {"LOCAL_WORLD_SIZE": self.local_world, "MASTER_PORT": self.port}
        return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": self.host}


def slurm_task(environment: Mapping[str, str]) -> SlurmTask | None:
    """Place of this process among the tasks of its job step; None where it is no rank of SLURM's.

    Args:
        environment: Variables of this process.

    Raises:
        ValueError: They contradict each other, or those of a torchrun.
    """
    # srun gives this one to each task, and only srun: the batch script has but the numbers of its job.
    world = _number(environment, "SLURM_STEP_NUM_TASKS", default=1)
    if world == 1:
        return None
    if "TORCHELASTIC_RUN_ID" in environment:
        _check_torchrun(environment, world)
        return None
    task = SlurmTask(
        rank=_number(environment, "SLURM_PROCID"),
        world=world,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_world=_here(environment, world),
        host=environment.get("MASTER_ADDR") or hosts(_text(environment, "SLURM_STEP_NODELIST"))[0],
        port=_number(environment, "MASTER_PORT", default=_port(environment)),
    )
    if task.rank >= world:
        raise ValueError(f"SLURM_PROCID is {task.rank} and SLURM_STEP_NUM_TASKS {world}: {_UNSET}")
    if task.local_rank >= task.local_world:
        raise ValueError(f"SLURM_LOCALID is {task.local_rank}, and this node has {task.local_world} tasks: {_UNSET}")
    # Someone has set torchrun's variables by hand: the same numbers are welcome, others would make another training.
    for name, value in task.variables().items():
        given = environment.get(name, value)
        if given != value:
            raise ValueError(f"{name} is {given}, and by SLURM's variables {value}: unset {name} in the job's script")
    return task


_UNSET = "leave these variables as srun sets them"


def _check_torchrun(environment: Mapping[str, str], tasks: int) -> None:
    """Refuse tasks that are torchruns of their own: each would train alone, all of them into one RUN."""
    nodes = _number(environment, "GROUP_WORLD_SIZE", default=tasks)
    if nodes == 1:
        raise ValueError(
            f"SLURM has started {tasks} tasks, and each has a torchrun of its own with --nnodes 1: take srun"
            f" --ntasks-per-node=1 with torchrun --nnodes, or leave torchrun out (--launch slurm)"
        )


def _here(environment: Mapping[str, str], world: int) -> int:
    """Number of tasks on this node, from a text such as `4(x2),3`."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    counts: list[int] = []
    for part in _text(environment, name).split(","):
        found = _TASKS.fullmatch(part)
        times = int(found[2] or 1) if found else _MOST + 1
        if found is None or times > _MOST:
            raise ValueError(f"{name} is {environment[name]!r:.100}, no list of numbers of tasks: {_UNSET}")
        counts += [int(found[1])] * times
    node = _number(environment, "SLURM_NODEID")
    if sum(counts) != world or node >= len(counts):
        raise ValueError(
            f"{name} is {environment[name]!r:.100}, which does not go with SLURM_STEP_NUM_TASKS {world} and"
            f" SLURM_NODEID {node}: {_UNSET}"
        )
    return counts[node]


def _port(environment: Mapping[str, str]) -> int:
    # Steps of one job may run next to each other on one node.
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    return _LOWEST_PORT + (31 * job + step) % _PORTS


def hosts(text: str) -> list[str]:
    """Names of hosts of a list in SLURM's notation, in its order.

    >>> hosts("node[01-03,7],gpu2")
    ['node01', 'node02', 'node03', 'node7', 'gpu2']

    Raises:
        ValueError: It is no such list.
    """
    wrong = ValueError(f"{text!r:.100} is no list of hosts in SLURM's notation")
    found: list[str] = []
    at = 0
    while at <= len(text):
        # One entry: parts of text and of ranges in brackets, up to a comma or the end. Ranges multiply.
        names = [""]
        start = at
        while part := _HOST_PART.match(text, at):
            ends = _numbers(part[1], wrong) if part[1] is not None else [part[2]]
            if len(names) * len(ends) > _MOST:
                raise wrong
            names = [name + end for name in names for end in ends]
            at = part.end()
        if at == start or (at < len(text) and text[at] != ","):
            raise wrong
        found += names
        if len(found) > _MOST:
            raise wrong
        at += 1
    return found


def _numbers(text: str, wrong: ValueError) -> list[str]:
    """Numbers of the ranges in a pair of brackets, as wide as the first number of each."""
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            raise wrong
        if not 0 <= int(last) - int(first) < _MOST - len(found):
            raise wrong
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def _text(environment: Mapping[str, str], name: str) -> str:
    try:
        return environment[name]
    except KeyError:
        raise ValueError(f"{name} is not set, as srun sets it for each task: start the training by srun") from None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environment:
        return default
    text = _text(environment, name)
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"{name} is {text!r:.100}, must be a number: {_UNSET}")
    return int(text)
