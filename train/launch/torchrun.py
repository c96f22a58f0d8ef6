"""Ranks on one machine by PyTorch's launcher: starting them, and being one of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from talkinghead.runtime.child_process import end_with
from train.launch.failure import Failure, FailureLog, RunFailed
from train.launch.worker import DATA_VARIABLE, on_rank_zero, process_group, run_worker
from train.run.run_folder import RunConfig, RunFolder, begin, check_place
from train.trainer.port import LocalPort


def started_by_torchrun() -> bool:
    """Whether this process is one of the ranks of a `torchrun`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_torchrun(run: RunFolder, workers: int, data: str | None = None) -> None:
    """Start the ranks of a run here and wait for them.

    Args:
        run: Folder of the run.
        workers: Number of ranks.
        data: Location of the data set, where config.json must not name it in full.

    Raises:
        RunFailed: The training ended early; with the message of the rank that failed first.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it repeats what the ranks print
    failures = FailureLog(run.logs)
    failures.clear()
    # By the environment: command lines are visible to all users of a machine, and the location may hold credentials.
    if data is not None:
        os.environ[DATA_VARIABLE] = data
    with tempfile.TemporaryDirectory(prefix="talkinghead-") as scratch:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            # A rank that is asked to stop first writes its checkpoint; torchrun kills it only after this time, in
            # seconds.
            shutdown_timeout=int(run.recipe.train.parallel.timeout_s),
        )
        # Each rank is a process of its own: `python -m train worker`, which ends when this process ends.
        command = ["-m", "train", "worker", "--run", str(run.path), "--parent", str(os.getpid())]
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as error:
            # A signal to this process is passed on to the ranks: the first of them may have written its last step.
            found = failures.first()
            message = found.message if found and found.kind == "interrupted" else "interrupted"
            raise RunFailed(Failure(kind="interrupted", message=message)) from error
        except ChildFailedError as error:
            raise RunFailed(_failure(failures, error)) from error


def _failure(failures: FailureLog, error: ChildFailedError) -> Failure:
    found = failures.first()
    if found is not None and found.kind != "peer":
        return found
    # A rank that was killed writes no failure, and the others only that they lost it.
    for rank, failed in sorted(error.failures.items()):
        if failed.exitcode < 0:
            name = signal.Signals(-failed.exitcode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return Failure(kind="machine", message=f"rank {rank} was ended by {name}{hint}", rank=rank)
    rank, first = error.get_first_failure()
    message = f"rank {rank} ended with exit status {first.exitcode}, see {failures.rank_file(rank)}"
    return found or Failure(kind="fault", message=message, rank=rank)


def run_rank(path: Path, parent: int | None = None) -> None:
    """Be one rank of an existing run under torchrun.

    Args:
        path: RUN.
        parent: Process id of the launcher: this rank ends when it ends, and leaves the message about a failure to it.
    """
    if parent is not None:
        end_with(parent)
    try:
        run_worker(path, LocalPort.from_environment())
    except RunFailed:
        if parent is None or FailureLog(RunFolder.open(path).logs).first() is None:
            raise
        # At once: a background thread may wait for ranks that have ended.
        os._exit(1)


def join_torchrun(path: str | Path, config: RunConfig, data: str | None) -> None:
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


def _started(path: str | Path, config: RunConfig, data: str | None) -> None:
    run = begin(path, config, data)
    FailureLog(run.logs).clear()
