"""Measurement of a training: a few real steps of one rank, in a process and a folder of their own.

It is the trainer itself (`train.trainer.loop`), on the data and the device of the training, without validation and
checkpoints. The process is new, so that its memory at its peak is that of a rank, and what kills it kills nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from talkinghead.runtime.child_process import end_with
from talkinghead.runtime.peak_memory import peak_memory
from train.config import CheckpointConfig, LogConfig, ParallelConfig, TrainConfig, ValidationConfig
from train.doctor.footprint import Footprint
from train.launch.failure import failure_of, out_of_memory
from train.launch.worker import cpu_threads, process_group
from train.recipe import make_task
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.trainer.loop import Trainer
from train.trainer.parallel import choose_device
from train.trainer.port import LocalPort

log = logging.getLogger(__name__)

MOST_STEPS = 3
ENOUGH_S = 60.0
"""Seconds after which no further step is measured."""
_EXPORT_BYTES = 1 << 30
"""Size of a module up to which an export is written, to see what it takes."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Memory that there is for a rank."""

    device: str
    """Name of the device."""
    device_bytes: int | None
    """Free memory of a GPU; None for the CPU."""
    host_bytes: int
    """Memory of the computer that is free, or that this process' cgroup may still take."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A few steps of one rank."""

    steps: int
    """Number of steps that were measured."""
    step_s: float
    """Seconds of a step: all microbatches of a rank, and the update."""
    data_wait: float
    """Share of it in which the rank waited for data."""
    device_bytes: int | None
    """Most memory that tensors took on the GPU; None on a CPU."""
    host_bytes: int
    """Most memory that the process took, without its reading processes."""
    libraries_bytes: int
    """What of it the process took before the training."""
    export_bytes: int | None
    """Size of an export; None where it was too large to be written for this."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a measurement."""

    room: Room | None = None
    measured: Measured | None = None
    problem: str | None = None
    """Why the training would end early, in one line."""


def measure(config: RunConfig, data: Any, task_folder: Path, here: int, needed: Footprint) -> Outcome:
    """Measure a few steps of one rank.

    Args:
        config: Run that is asked for, with as many microbatches in a step as the rank has.
        data: Data set, as `make_task` takes it.
        task_folder: What the task has derived from the data.
        here: Number of ranks on this machine, which share its cores.
        needed: Footprint of a single rank: nothing is measured where already that is more than there is.
    """
    with tempfile.TemporaryDirectory(prefix="talkinghead-doctor-") as folder:
        run = RunFolder.start(Path(folder) / "run", _short(config))
        shutil.copytree(task_folder, run.task_folder)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        arguments = (os.getpid(), run.path, data, here, needed, theirs)
        process = context.Process(target=_be_measured, args=arguments)
        process.start()
        theirs.close()
        try:
            return _outcome(ours, process, config.recipe.train)
        finally:
            # With its reading processes: it is the first of a session of its own.
            for kill in (lambda: os.killpg(process.pid or 0, signal.SIGKILL), process.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill()
            process.join()


def _outcome(pipe: Connection, process: Any, config: TrainConfig) -> Outcome:
    """What the measuring process says until it ends."""
    outcome = Outcome()
    with contextlib.suppress(EOFError):
        while True:
            outcome = dataclasses.replace(outcome, **pipe.recv())
    process.join()
    if outcome.measured is None and outcome.problem is None and outcome.room is not None:
        # It was killed, or has failed by a mistake of ours, whose traceback it has printed.
        if process.exitcode == -signal.SIGKILL:
            return dataclasses.replace(outcome, problem=out_of_memory("the measurement was killed", config))
        if process.exitcode:
            raise RuntimeError(f"the measuring process ended with exit status {process.exitcode}")
    return outcome


def _short(config: RunConfig) -> RunConfig:
    """A run that leaves as little as possible next to its steps."""
    # Nothing is validated, so no step can be the best either.
    quiet = {
        "validation": ValidationConfig(every=0),
        "checkpoint": CheckpointConfig(),
        "log": LogConfig(tensorboard=False),
    }
    train = dataclasses.replace(config.recipe.train, **quiet)
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, train=train))


# --- in the measuring process -----------------------------------------------------------------------------------------


class _Enough(Exception):
    """Enough steps were measured."""


class _MeasuredTrainer(Trainer):
    """Trainer that does a few steps, and nothing between them."""

    def measure(self) -> int:
        """Train; returns the number of steps."""
        self._end = time.monotonic() + ENOUGH_S
        with contextlib.suppress(_Enough):
            self.fit()
        return self.step

    def _needs_figures(self, step: int) -> bool:
        return True  # the time of each step is to be its own

    def _after_step(self) -> None:
        if self.step >= min(MOST_STEPS, self.config.steps) or time.monotonic() > self._end:
            raise _Enough


def _be_measured(parent: int, path: Path, data: Any, here: int, needed: Footprint, pipe: Connection) -> None:
    """Measure, and send the fields of an `Outcome` as they become known."""
    # Ctrl-C is the parent's: it ends this process and its readers.
    end_with(parent)
    os.setsid()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run = RunFolder.open(path)
    config = run.recipe.train
    try:
        room = _room(config.parallel, here)
        pipe.send({"room": room})
        if _fits(needed, room):
            pipe.send({"measured": _measured(run, data, here, needed)})
    except (Exception, KeyboardInterrupt) as error:
        if (failure := failure_of(error, 0, path, config)).kind == "fault":
            raise
        pipe.send({"problem": failure.message})


def _measured(run: RunFolder, data: Any, here: int, needed: Footprint) -> Measured:
    config = run.recipe.train
    libraries = peak_memory()
    # As many threads as each of the ranks gets on this machine.
    torch.set_num_threads(cpu_threads(config.parallel, LocalPort(local_world=here)))
    port = LocalPort()
    with process_group(config.parallel, port):
        task = make_task(run.task, run.recipe.config, data, run.task_folder)
        trainer = _MeasuredTrainer(task, config, run, port, run.recipe.lora)
        try:
            steps = trainer.measure()
            speed = trainer.clock.interval(config.global_batch)
            host = peak_memory()
            export = None
            if needed.copy_bytes <= _EXPORT_BYTES:
                run.export.mkdir()
                trainer.export(run.export)
                export = folder_bytes(run.export)
        finally:
            trainer.close()
    on_gpu = trainer.device.type == "cuda"
    return Measured(
        steps=steps,
        step_s=speed["step_s"],
        data_wait=speed["data_wait"],
        device_bytes=round(speed["memory_gb"] * 1e9) if on_gpu else None,
        host_bytes=host,
        libraries_bytes=libraries,
        export_bytes=export,
    )


def _fits(needed: Footprint, room: Room) -> bool:
    """Whether there is room for the state of one rank, for which it is not too much to begin."""
    if room.device_bytes is None:
        return needed.state_bytes + needed.copy_bytes <= room.host_bytes
    return needed.state_bytes <= room.device_bytes and 2 * needed.copy_bytes <= room.host_bytes


def _room(parallel: ParallelConfig, here: int) -> Room:
    # Is there a device for the last rank on this machine, and what has the first one's?
    choose_device(parallel, here - 1)
    device = choose_device(parallel, 0)
    host = _host_bytes() + peak_memory()  # what this process has by now is the training's, too
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Room(device=torch.cuda.get_device_name(device), device_bytes=free, host_bytes=host)
    return Room(device="cpu", device_bytes=None, host_bytes=host)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# --- memory of the computer -------------------------------------------------------------------------------------------

_CGROUPS = Path("/sys/fs/cgroup")


def _host_bytes() -> int:
    """Memory that this process can still have: what the kernel deems available, and what its cgroups allow."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize()
    memory = _numbers(Path("/proc/meminfo"))
    free = memory["MemAvailable:"] * 1024 if "MemAvailable:" in memory else pages
    return max(0, min([free, *_cgroup_bytes()]))


def _cgroup_bytes() -> Iterator[int]:
    """What each cgroup of this process, and each above it, may still take. Files that it has read count as free."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        second = controllers == ""
        if not second and "memory" not in controllers.split(","):
            continue
        top = _CGROUPS if second else _CGROUPS / "memory"
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inside = top / place.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                    limit, used = (int((folder / name).read_text()) for name in names)
                    files = _numbers(folder / "memory.stat")
                    cached = [files.get(f"{kind}_file", 0) for kind in ("active", "inactive")]
                    yield limit - used + sum(cached)


def _numbers(file: Path) -> dict[str, int]:
    """First two words of each line of a file of the kernel; empty where it is not there."""
    try:
        words = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}
