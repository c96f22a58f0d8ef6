"""Ranks that a torchrun of the user's own starts, or SLURM: each joins the others and trains.

For a closed network only: torchrun meets the ranks at a TCPStore, which listens on all interfaces without a password,
and unpickles what it finds there. Whoever reaches its port runs code as the user; nothing that a rank does changes
that. On one machine `train.launch.ranks` starts several ranks without it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from train.config import ParallelConfig
from train.data_sets import DataSets
from train.launch.failure import FailureLog
from train.launch.flight_recorder import record
from train.launch.worker import on_rank_zero, process_group, run_worker
from train.run.run_config import RunConfig
from train.run.run_folder import begin, check_place
from train.trainer.parallel import check_devices, gather_lists
from train.trainer.port import LocalPort


def started_by_torchrun() -> bool:
    """Whether this process is one of the ranks of a `torchrun`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join_ranks(path: str | Path, config: RunConfig, data: DataSets | None, until: float | None = None) -> None:
    """Be one rank of those that a person or a scheduler has started; rank 0 starts or resumes the run.

    The place comes from the environment variables, by the names that torchrun has for them.

    Args:
        path: RUN.
        config: Task, recipe and data.
        data: The data sets, where config.json must not name them in full.
        until: Time at which the training must have ended; see `Deadline`.

    Raises:
        PeerError: Rank 0 could not start it and says why; raised on the other ranks.
        RunFailed: The training ended early.
    """
    port = LocalPort.from_environment(until)
    record(check_place(path) / "logs")
    parallel = config.recipe.train.parallel
    with process_group(parallel, port):
        # Each machine says whether it has GPUs for its ranks.
        missing = gather_lists(_missing_devices(parallel, port))
        # Only rank 0 may create or change RUN; the others open it afterwards.
        on_rank_zero(lambda: _started(path, config, data, port.world, missing), port.rank, None)
        run_worker(path, port, data)


def _missing_devices(parallel: ParallelConfig, port: LocalPort) -> list[str]:
    """Message about too few GPUs on this machine; empty where each rank has one."""
    try:
        check_devices(parallel, port.local_world)
    except ValueError as error:
        return [f"{socket.gethostname()}: {error}"]
    return []


def _started(path: str | Path, config: RunConfig, data: DataSets | None, ranks: int, missing: list[str]) -> None:
    if missing:
        raise ValueError(missing[0])
    run = begin(path, config, data, ranks=ranks)
    FailureLog(run.logs).clear()
