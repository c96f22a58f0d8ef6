"""Work of every rank, by whichever launcher: the training in RUN, from its newest checkpoint to exported weights."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from infer.weights.licences import TRAINING_FILE
from talkinghead.files.atomic import commit_folder, temporary_folder, write_whole
from talkinghead.files.foreign import open_own
from train.clip_choice import check_no_removal, note_run
from train.config import ParallelConfig
from train.data_sets import DATA_VARIABLE, DataSets
from train.launch.failure import FailureLog, PeerError
from train.launch.flight_recorder import record
from train.launch.meeting import Meeting, signed_objects, store_of
from train.launch.peers import watched
from train.recipe import make_task
from train.run.kept_weights import about_training
from train.run.run_folder import RunFolder
from train.trainer.port import Port

log = logging.getLogger(__name__)

_LOCK_PATIENCE_S = 20.0  # Ray may start again before the last rank 0 has ended
_PATIENCE = timedelta(days=7)  # deriving from a large data set may take long, and no rank may give up meanwhile
_OURS = ("train", "infer", "shards", "talkinghead")
"""Packages whose progress goes into the log; Ray's workers log much more."""


def run_worker(path: str | Path, port: Port, data: DataSets | None = None, meeting: Meeting | None = None) -> None:
    """Train as one rank of a run: resume, train, export, and wait for the validations.

    Args:
        path: RUN; must have been started (`RunFolder.start`).
        port: Place of this rank among the ranks.
        data: The data sets, where config.json must not name them in full.
        meeting: Where the ranks meet, and their secret. None: a single rank, or ranks under a torchrun of the user's
            own.

    Raises:
        RunFailed: The training ended early, for whatever reason. The traceback is in RUN/logs.
        ValueError: This machine sees no run at `path`.
    """
    # Open the run, and the files to which this rank logs and writes a failure.
    run = RunFolder.open(path)
    failures = FailureLog(run.logs)
    if data is not None:
        os.environ[DATA_VARIABLE] = data.to_text()
    with _log_to(failures.rank_file(port.rank)), failures.recorded(port.rank, run.recipe.train):
        # Join the other ranks. The second group has a long timeout, for deriving and exporting on rank 0.
        parallel = run.recipe.train.parallel
        torch.set_num_threads(cpu_threads(parallel, port))
        record(run.logs)
        with (
            process_group(parallel, port, meeting),
            watched(port, meeting, failures, parallel) as tell,
            contextlib.ExitStack() as stack,
            # Within the watch: the others learn of a failure before this rank closes anything.
            failures.recorded(port.rank, run.recipe.train, tell),
        ):
            group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

            def begin() -> None:
                stack.enter_context(run.locked(_LOCK_PATIENCE_S))
                for location in run.data_sets.in_full().locations:
                    check_no_removal(location)
                _prepare(run)
                run.push()
                _note(run)

            # Rank 0 takes the lock until the training ends, and derives what the task needs; then all train.
            on_rank_zero(begin, port.rank, group)
            if run.store is not None:
                # Once for each other machine; the ranks of a machine wait for its first one.
                if port.local_rank == 0 and port.rank != 0:
                    run.fetch_task()
                dist.barrier(group)
            _train(run, port, group, stack)


def _train(run: RunFolder, port: Port, group: Any, stack: contextlib.ExitStack) -> None:
    from train.run.overview import write_overview
    from train.trainer.loop import Trainer

    task = make_task(run.task, run.recipe.config, run.data_sets.in_full(), run.task_folder)
    # Resume from the newest checkpoint, and train to the last step.
    trainer = Trainer(task, run.recipe.train, run, port, run.recipe.lora)
    stack.callback(trainer.close)
    trainer.fit()
    # Export: all ranks gather the weights, rank 0 writes them; the folder gets its name when it is whole.
    folder = temporary_folder(run.export) if port.rank == 0 else run.export
    trainer.export(folder)
    on_rank_zero(lambda: _publish(run, folder, trainer.step), port.rank, group)
    # Validations run next to the training, and the last one may not be done yet; the overview shows it.
    if port.rank == 0:
        trainer.validations.wait()
        write_overview(run.path)
        run.push()


def _publish(run: RunFolder, folder: Path, step: int) -> None:
    """Move exported weights to their place, with their provenance next to them (but without paths of this machine)."""
    write_whole(folder / TRAINING_FILE, about_training(run, step))
    commit_folder(folder, run.export)


def cpu_threads(config: ParallelConfig, port: Port) -> int:
    """Number of arithmetic threads of a rank, equal for all launchers: the last bits of sums on a CPU depend on it."""
    return config.threads or max(1, len(os.sched_getaffinity(0)) // port.local_world)


def backend_of(config: ParallelConfig) -> str:
    """Backend of the process group: CPU tensors travel by gloo, those of GPUs by NCCL."""
    return "gloo" if config.device == "cpu" or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"


@contextlib.contextmanager
def process_group(config: ParallelConfig, port: Port, meeting: Meeting | None = None) -> Iterator[None]:
    """Context with the default process group, unless the launcher has made it; also for one rank, which differs in no
    way. With a meeting, the ranks sign the objects that they exchange."""
    with signed_objects(meeting.key) if meeting else contextlib.nullcontext():
        if dist.is_initialized():
            yield
        else:
            with _made_group(config, port, meeting):
                yield


@contextlib.contextmanager
def _made_group(config: ParallelConfig, port: Port, meeting: Meeting | None) -> Iterator[None]:
    # A single rank needs no address. Those of one machine meet at a file, and those of a torchrun at its TCPStore.
    options: dict[str, Any] = {"init_method": "env://"}
    if port.world == 1:
        options = {"store": dist.HashStore()}  # pyright: ignore[reportPrivateImportUsage]
    elif meeting is not None:
        options = {"store": store_of(meeting, port.world)}
    timeout = timedelta(seconds=config.timeout_s)
    dist.init_process_group(backend_of(config), rank=port.rank, world_size=port.world, timeout=timeout, **options)
    done = False
    try:
        yield
        done = True
    finally:
        if done or port.world == 1:  # with a dead rank in the group, this might wait for it
            dist.destroy_process_group()


def on_rank_zero(function: Callable[[], None], rank: int, group: Any) -> None:
    """Call a function on rank 0 while the others wait for it.

    Raises:
        PeerError: The function failed; raised on the other ranks. Rank 0 gets the error itself.
    """
    # The others must learn of a failure, too, else they would wait until the timeout.
    done = [False]
    try:
        if rank == 0:
            function()
            done[0] = True
    finally:
        dist.broadcast_object_list(done, src=0, group=group)
    if not done[0]:
        raise PeerError("rank 0 failed")


def _prepare(run: RunFolder) -> None:
    # Once for each run: the folder is renamed when it is complete, so it is complete or missing.
    if run.task_folder.is_dir():
        return
    started = time.perf_counter()
    folder = temporary_folder(run.task_folder)
    make_task(run.task, run.recipe.config, run.data_sets.in_full(), folder).prepare()
    commit_folder(folder, run.task_folder)
    log.info(
        "prepared %s from %s in %.1f s", run.task, ", ".join(run.data_sets.locations), time.perf_counter() - started
    )


def _note(run: RunFolder) -> None:
    # At every start: the run may have been moved, or its note removed.
    data = run.data_sets.in_full()
    reads = make_task(run.task, run.recipe.config, data, run.task_folder).reads()
    for location, read in zip(data.locations, reads, strict=True):
        note_run(location, run.location, read)


@contextlib.contextmanager
def _log_to(file: Path) -> Iterator[None]:
    # Not by the handler for files: it would follow a link.
    stream = os.fdopen(open_own(file), "w", encoding="utf-8")
    stream.seek(0, os.SEEK_END)
    handler = logging.StreamHandler(stream)
    # Warnings of all libraries, progress of our own packages only.
    handler.addFilter(lambda record: record.name.startswith(_OURS) or record.levelno >= logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    # Ray's workers have no logging set up; a lower level that was chosen stays.
    before = root.level
    if before > logging.INFO or before == logging.NOTSET:
        root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()
        stream.close()
