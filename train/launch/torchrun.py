"""Ranks that a torchrun of the user's own starts: each joins the others and trains.

For a closed network only: torchrun meets the ranks at a TCPStore, which listens on all interfaces without a password,
and unpickles what it finds there. Whoever reaches its port runs code as the user; nothing that a rank does changes
that. On one machine `train.launch.ranks` starts several ranks without it.
"""

from __future__ import annotations

import os
from pathlib import Path

from train.data_sets import DataSets
from train.launch.failure import FailureLog
from train.launch.worker import on_rank_zero, process_group, run_worker
from train.run.run_folder import RunConfig, begin, check_place
from train.trainer.port import LocalPort


def started_by_torchrun() -> bool:
    """Whether this process is one of the ranks of a `torchrun`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join_torchrun(path: str | Path, config: RunConfig, data: DataSets | None) -> None:
    """Be one rank under a torchrun that a person or a scheduler has started; rank 0 starts or resumes the run.

    Raises:
        PeerError: Rank 0 could not start it and says why; raised on the other ranks.
        RunFailed: The training ended early.
    """
    port = LocalPort.from_environment()
    with process_group(config.recipe.train.parallel, port):
        # Only rank 0 may create or change RUN; the others open it afterwards.
        on_rank_zero(lambda: _started(path, config, data), port.rank, None)
        run_worker(check_place(path), port, data)


def _started(path: str | Path, config: RunConfig, data: DataSets | None) -> None:
    run = begin(path, config, data)
    FailureLog(run.logs).clear()
