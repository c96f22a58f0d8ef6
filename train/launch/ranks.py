"""Ranks on one machine as child processes of this one; nothing that they open is reached from other machines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from talkinghead.runtime.child_process import end_with
from train.data_sets import DataSets
from train.launch.failure import Failure, FailureLog, RunFailed
from train.launch.meeting import loopback_settings, meeting_of_environment, open_meeting
from train.launch.worker import DATA_VARIABLE, run_worker
from train.run.run_folder import RunFolder
from train.trainer.port import MEETING_VARIABLE, LocalPort, StopRequest

_POLL_S = 0.05
_PATIENCE_S = 15.0
"""Seconds that the other ranks get to notice that one has failed, and to say so, before they are killed."""


def run_processes(run: RunFolder, workers: int, data: DataSets | None = None) -> None:
    """Start the ranks of a run here and wait for them.

    A first SIGTERM or SIGINT is passed on to the ranks, which write a checkpoint and get `parallel.timeout_s` for it. A
    second one has its ordinary effect, and the ranks end with this process.

    Args:
        run: Folder of the run.
        workers: Number of ranks.
        data: The data sets, where config.json must not name them in full.

    Raises:
        RunFailed: The training ended early; with the message of the rank that failed first.
    """
    failures = FailureLog(run.logs)
    failures.clear()
    processes: list[subprocess.Popen[bytes]] = []
    # The folder has mode 0700: what the ranks tell each other through it is for this user only.
    with tempfile.TemporaryDirectory(prefix="talkinghead-ranks-") as folder, StopRequest(silent=True) as stop:
        open_meeting(Path(folder))
        common = os.environ | loopback_settings() | {MEETING_VARIABLE: folder}
        # By the environment: command lines are visible to all users of a machine, and the location may hold
        # credentials.
        if data is not None:
            common[DATA_VARIABLE] = data.to_text()
        try:
            for rank in range(workers):
                processes.append(_start(run, common | _place(rank, workers)))
            codes = _wait(processes, failures, stop, run.recipe.train.parallel.timeout_s)
        finally:
            _kill(processes)
    if all(code == 0 for code in codes):
        return
    if stop.requested:
        raise RunFailed(_interrupted(failures.first()))
    raise RunFailed(_failure(failures, codes))


def run_rank(path: Path, parent: int | None = None) -> None:
    """Be one rank of an existing run, in the place that the environment variables give.

    Args:
        path: RUN.
        parent: Process id of the launcher: this rank ends when it ends, and leaves the message about a failure to it.
    """
    if parent is not None:
        end_with(parent)
    try:
        run_worker(path, LocalPort.from_environment(), meeting=meeting_of_environment())
    except RunFailed:
        if parent is None or FailureLog(RunFolder.open(path).logs).first() is None:
            raise
        # At once: a background thread may wait for ranks that have ended.
        os._exit(1)


def _place(rank: int, workers: int) -> dict[str, str]:
    """Environment variables with the place of a rank, as a torchrun gives them."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    return {name: str(value) for name, value in names.items()}


def _start(run: RunFolder, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = ["-m", "train", "worker", "--run", str(run.path), "--parent", str(os.getpid())]
    # A session of its own: Ctrl-C reaches this process only, which passes it on.
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )


def _wait(
    processes: list[subprocess.Popen[bytes]], failures: FailureLog, stop: StopRequest, timeout_s: float
) -> list[int | None]:
    """Wait until all ranks have ended, or for the others as long as they may take after a signal or a failure.

    Returns:
        Exit status of each rank, negative for a signal; None for those that have not ended.
    """
    told, broken = False, False
    deadline = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or time.monotonic() > deadline:
            return codes
        # A signal: the ranks agree on a step, and write a checkpoint after it.
        if stop.requested and not told:
            told, deadline = True, min(deadline, time.monotonic() + timeout_s)
            for process in processes:
                process.send_signal(stop.number)
        # A rank is lost: the others wait for it in vain, until the timeout of the process group. After a signal the
        # ranks end one after the other, which is no loss.
        if not broken and any(codes) and not _is_interruption(failures.first()):
            broken, deadline = True, min(deadline, time.monotonic() + _PATIENCE_S)
        time.sleep(_POLL_S)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the ranks that are left, with their reading processes."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def _is_interruption(failure: Failure | None) -> bool:
    return failure is not None and failure.kind == "interrupted"


def _interrupted(found: Failure | None) -> Failure:
    """Failure after a signal: a rank names the step of its checkpoint, or why there is none."""
    if found is not None and found.kind in ("interrupted", "machine"):
        return found
    return Failure(kind="interrupted", message="interrupted")


def _failure(failures: FailureLog, codes: list[int | None]) -> Failure:
    """Failure that ended a training: what the first rank wrote down, or how a rank died."""
    found = failures.first()
    if found is not None and found.kind != "peer":
        return found
    # A rank that was killed writes no failure, and the others only that they lost it.
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return Failure(kind="machine", message=f"rank {rank} was ended by {name}{hint}", rank=rank)
    if found is not None:
        return found
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    message = f"rank {rank} ended with exit status {code}, see {failures.rank_file(rank)}"
    return Failure(kind="fault", message=message, rank=rank)
