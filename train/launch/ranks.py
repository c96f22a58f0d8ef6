"""Ranks on one machine as child processes of this one; nothing that they open is reached from other machines.

When one of them fails they end, all of them, and start again from the newest checkpoint if the failure may pass.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from talkinghead.runtime.child_process import end_with
from train.data_sets import DATA_VARIABLE, DataSets
from train.launch.failure import Failure, FailureLog, Repetition, RunFailed
from train.launch.meeting import loopback_settings, meeting_of_environment, open_meeting
from train.launch.worker import run_worker
from train.run.run_folder import RunFolder
from train.trainer.checkpoint_files import whole_steps
from train.trainer.port import MEETING_VARIABLE, LocalPort, StopRequest

log = logging.getLogger(__name__)

_POLL_S = 0.05
_PATIENCE_S = 5.0
"""Seconds that the other ranks get to notice that one has failed, and to say why, before they are killed."""
_CLOSING_S = 1.0
"""Seconds that they get when that is known."""


def run_processes(
    run: RunFolder,
    workers: int,
    data: DataSets | None = None,
    *,
    max_failures: int = 0,
    until: float | None = None,
) -> None:
    """Start the ranks of a run here and wait for them.

    A first SIGTERM, SIGINT or SIGUSR1 is passed on to the ranks, which write a checkpoint and get `parallel.timeout_s`
    for it. A second one has its ordinary effect, and the ranks end with this process.

    Args:
        run: Folder of the run.
        workers: Number of ranks.
        data: The data sets, where config.json must not name them in full.
        max_failures: Number of times to start again after a failure that may pass, without a newer checkpoint in
            between.
        until: Time at which the training must have ended; see `Deadline`.

    Raises:
        RunFailed: The training ended early; with the message of the rank that failed first.
    """
    repetition = Repetition()
    number, newest = 0, max(whole_steps(run.checkpoints), default=None)
    with StopRequest(silent=True) as stop:
        while (failure := _run_once(run, workers, data, until, stop)) is not None:
            # A training of weeks may lose many ranks; it fails for good only where it gets no further.
            before, newest = newest, max(whole_steps(run.checkpoints), default=None)
            number = number + 1 if newest == before else 1
            if stop.requested or number > max_failures or repetition.final(failure, newest):
                raise RunFailed(failure)
            where = "the beginning" if newest is None else f"the checkpoint of step {newest}"
            told = "%s; the ranks start again from %s (%d of at most %d times without a newer one)"
            log.warning(told, failure.message, where, number, max_failures)


def _run_once(
    run: RunFolder, workers: int, data: DataSets | None, until: float | None, stop: StopRequest
) -> Failure | None:
    """Start the ranks and wait for them; returns why they ended early, None where they came to the end."""
    failures = FailureLog(run.logs)
    failures.clear()
    processes: list[subprocess.Popen[bytes]] = []
    # The folder has mode 0700: what the ranks tell each other through it is for this user only.
    with tempfile.TemporaryDirectory(prefix="talkinghead-ranks-") as folder:
        open_meeting(Path(folder))
        common = os.environ | loopback_settings() | {MEETING_VARIABLE: folder}
        # By the environment: command lines are visible to all users of a machine, and the location may hold
        # credentials.
        if data is not None:
            common[DATA_VARIABLE] = data.to_text()
        try:
            for rank in range(workers):
                processes.append(_start(run, common | _place(rank, workers), until))
            codes = _wait(processes, failures, stop, run.recipe.train.parallel.timeout_s)
        finally:
            _kill(processes)
    if all(code == 0 for code in codes):
        return None
    return _interrupted(failures.first(), stop) if stop.requested else _failure(failures, codes)


def run_rank(path: str, parent: int | None = None, until: float | None = None) -> None:
    """Be one rank of an existing run, in the place that the environment variables give.

    Args:
        path: RUN.
        parent: Process id of the launcher: this rank ends when it ends, and leaves the message about a failure to it.
        until: Time at which the training must have ended; see `Deadline`.
    """
    if parent is not None:
        end_with(parent)
    try:
        run_worker(path, LocalPort.from_environment(until), meeting=meeting_of_environment())
    except RunFailed:
        if parent is None or FailureLog(RunFolder.open(path).logs).first() is None:
            raise
        # At once: a background thread may wait for ranks that have ended.
        os._exit(1)


def _place(rank: int, workers: int) -> dict[str, str]:
    """Environment variables with the place of a rank, as a torchrun gives them."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    return {name: str(value) for name, value in names.items()}


def _start(run: RunFolder, environment: dict[str, str], until: float | None) -> subprocess.Popen[bytes]:
    command = ["-m", "train", "worker", "--run", run.location, "--parent", str(os.getpid())]
    if until is not None:
        command += ["--until", repr(until)]
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
    told = False
    broken: float | None = None
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
        # A rank has failed. The others end by themselves, unless they are stopped. After a signal the ranks end one
        # after the other, which is no failure.
        if any(codes) and not _is_interruption(first := failures.first()):
            broken = broken or time.monotonic()
            known = first is not None and first.kind != "peer"
            deadline = min(deadline, broken + (_CLOSING_S if known else _PATIENCE_S))
        time.sleep(_POLL_S)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the ranks that are left; reading processes and validations end with their rank."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def _is_interruption(failure: Failure | None) -> bool:
    return failure is not None and failure.kind in ("interrupted", "preempted")


def _interrupted(found: Failure | None, stop: StopRequest) -> Failure:
    """Failure after a signal: a rank names the step of its checkpoint, or why there is none."""
    if found is not None and found.kind in ("interrupted", "preempted", "disk", "memory", "machine"):
        return found
    return Failure(
        kind="preempted" if stop.requeue else "interrupted", message="interrupted; the same command continues"
    )


def _failure(failures: FailureLog, codes: list[int | None]) -> Failure:
    """Failure that ended a training: what the first rank wrote down, or how a rank died."""
    found = failures.first()
    if found is not None and found.kind not in ("peer", "lost"):
        return found
    # A rank that was killed writes no failure, and the others only that they lost it.
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return Failure(kind="lost", message=f"rank {rank} was ended by {name}{hint}", rank=rank)
    if found is not None:
        return found
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    message = f"rank {rank} ended with exit status {code}, see {failures.rank_file(rank)}"
    return Failure(kind="fault", message=message, rank=rank)
