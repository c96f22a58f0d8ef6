"""Validation next to the training: one child process for each, so that no rank waits for its figures; or, where the
settings say so (`ranks`), by the ranks themselves, which share the clips out, while the training waits.

Rank 0 writes a copy of the weights into RUN/validation/step-…/weights (for this the ranks wait, as long as the disk
takes) and starts `python -m train validate` on it, one at a time and with low priority. When the figures are in, the
copy moves to RUN/weights, or is removed where it is not to stay (`train.run.kept_weights`); as long as it exists, the
validation is not done, so a resumed run does it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from talkinghead.files.atomic import sweep, temporary_folder, write_whole
from talkinghead.files.foreign import open_own, open_regular, read_json, warn_of_owner
from talkinghead.runtime.child_process import end_with
from train.config import ValidationConfig
from train.data_sets import DataSets
from train.recipe import make_task
from train.run.crew import ONE, Crew, shared
from train.run.previews import write_previews
from train.run.run_folder import RunFolder, folder_name, steps_in
from train.run.validation_device import RANKS, device_of
from train.trainer.port import MEETING_VARIABLE, Deadline
from train.trainer.precision import set_arithmetic

log = logging.getLogger(__name__)

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
RESULT = "result.json"
LOG = "validation.log"
_TOKEN = "crew"
_MAX_WAITING = 2  # each keeps a copy of the weights on the disk
_RESULT_BYTES = 1 << 20
_LOG_END_BYTES = 64 << 10
_NICENESS = 10  # of 19: the training and its reading processes come first
_PATIENCE = timedelta(days=7)  # a validation takes as long as it takes; that a rank lives is watched elsewhere
_OF_THE_RANKS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    MEETING_VARIABLE,
)


class Validations:
    """Validations of a run. Every rank makes one object, and all call `resume` and `submit` at the same steps; only
    that of rank 0 does something, and with device `ranks` the others validate along with it there.

    Args:
        run: Folder of the run.
        config: How often to validate, and on which device.
        rank: Number of this process.
        log_figures: Function that gets the step and the figures of each validation that is done.
        keep: Function that then gets the step and the folder with its weights, and moves it away or removes it.
        device: Device of this rank.
        deadline: Time at which the training must have ended. With device `ranks` a validation that would take longer
            is left to the next start, and none counts as a step.
    """

    def __init__(
        self,
        run: RunFolder,
        config: ValidationConfig,
        rank: int,
        log_figures: Callable[[int, dict[str, float]], None],
        keep: Callable[[int, Path], None],
        device: torch.device | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.run, self.config, self.rank, self.device = run, config, rank, device or torch.device("cpu")
        self._deadline, self._longest_s = deadline or Deadline(), 0.0
        self._here = config.device == RANKS
        # A group of its own, whose messages may come late.
        many = dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if self._here and many else None
        self._log_figures, self._keep = log_figures, keep
        self._waiting: list[int] = []
        self._child: tuple[int, subprocess.Popen[bytes]] | None = None
        self._failed: int | None = None

    def resume(self, step: int) -> None:
        """Begin at a step: validations that were not finished are done again, those after the step are removed."""
        if self.rank == 0:
            for number in steps_in(self.run.validation):
                folder = self.folder(number)
                sweep(folder)
                # A killed training got further than its newest checkpoint: those steps come again.
                if number > step:
                    shutil.rmtree(folder)
                elif (folder / "weights").is_dir():
                    self._waiting.append(number)
        if self._here:
            self._validate_here()

    def submit(self, step: int, export: Callable[[Path], None]) -> None:
        """Validate the weights that `export` writes into the empty folder it gets; it is called at once, on rank 0.

        Submit before the checkpoint of the same step is saved: else a kill between the two would lose it.
        """
        if self.rank == 0:
            self._add(step, export)
        if self._here:
            self._validate_here()
        self.poll()

    def _add(self, step: int, export: Callable[[Path], None]) -> None:
        # Written under another name, then renamed: a folder named weights is always whole.
        weights = self.folder(step) / "weights"
        temporary = temporary_folder(weights)
        export(temporary)
        shutil.rmtree(weights, ignore_errors=True)
        # Figures of an earlier validation of this step must not pass for those of these weights.
        (self.folder(step) / RESULT).unlink(missing_ok=True)
        temporary.rename(weights)
        self._waiting.append(step)
        # Too slow for the training: the oldest ones in the queue give way.
        for late in self._waiting[:-_MAX_WAITING]:
            log.warning("step %d is not validated: validation takes longer than the steps between two", late)
            shutil.rmtree(self.folder(late), ignore_errors=True)
        self._waiting = self._waiting[-_MAX_WAITING:]

    def _validate_here(self) -> None:
        """Do what waits, with all ranks that have the folder of the run; the others wait for them. Collective."""
        with self._deadline.suspended():
            while (step := self._next_here()) is not None:
                started = time.monotonic()
                crew = self._crew(step)
                if crew is not None:
                    self._validate_by(crew, step)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()  # its weights and images; the next step needs other sizes
                if self._group is not None:
                    dist.barrier(self._group)
                self._longest_s = max(self._longest_s, time.monotonic() - started)

    def _next_here(self) -> int | None:
        """Step that all ranks validate now, by what waits and by the clock of rank 0; None: none. Collective."""
        while self.rank == 0 and self._waiting and (self.folder(self._waiting[0]) / RESULT).exists():
            self._collect(self._waiting.pop(0), 0)  # done, but a kill came before its figures were logged
        if self.rank == 0 and self._waiting and self._deadline.due(None, ahead_s=self._longest_s):
            log.warning("step %d is validated at the next start: the hours are over before", self._waiting[0])
            return self._from_rank_zero(None)
        return self._from_rank_zero(self._waiting.pop(0) if self._waiting else None)

    def _crew(self, step: int) -> Crew | None:
        """Crew that validates a step: all ranks, if all find the folder that rank 0 has written into, else rank 0.
        Collective."""
        if self._group is None:
            return ONE
        # A folder of the same name on another machine is another one: only this one holds the token.
        token = self._from_rank_zero(secrets.token_hex(8))
        file = self.folder(step) / _TOKEN
        if self.rank == 0:
            write_whole(file, token.encode())
        dist.barrier(self._group)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, file.is_file() and file.read_bytes() == token.encode(), group=self._group)
        if self.rank == 0:
            file.unlink()
        if all(found):
            return Crew(self.rank, len(found), self._group)
        if self.rank == 0:
            log.warning("rank 0 validates alone: %d of %d ranks do not see %s", found.count(False), len(found), file)
        return ONE if self.rank == 0 else None

    def _validate_by(self, crew: Crew, step: int) -> None:
        """Part of this rank in the validation of a step."""
        data = self.run.data_sets.in_full()
        try:
            # Nothing may be left of it in what the training draws from.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                run_validation(self.run, step, data, device=self.device, crew=crew)
        except (ValueError, OSError, RuntimeError) as error:
            if crew.first:
                self._fail(step, str(error))
        else:
            if crew.first:
                self._collect(step, 0)

    def _from_rank_zero(self, value: T) -> T:
        """What rank 0 says. Collective."""
        said = [value]
        if self._group is not None:
            dist.broadcast_object_list(said, src=0, group=self._group)
        return said[0]

    def poll(self) -> None:
        """Log figures that are in, and start the next validation in the queue. Never waits."""
        if self._child is not None:
            step, child = self._child
            if child.poll() is None:
                return
            self._child = None
            self._collect(step, child.returncode)
        # Of those that the ranks are to make, some may wait for the next start.
        while self._waiting and self._child is None and not self._here:
            step = self._waiting.pop(0)
            if (self.folder(step) / RESULT).exists():  # done, but a kill came before its figures were logged
                self._collect(step, 0)
            else:
                self._child = step, _start(self.run, step, self.config)

    def wait(self) -> None:
        """Return when all validations are done."""
        self.poll()
        while self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child[1].wait(timeout=1.0)
            self.poll()

    def close(self) -> None:
        """End the running validation. A resumed run does it again."""
        if self._child is not None:
            _, child = self._child
            self._child = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    @property
    def pending(self) -> frozenset[int]:
        """Steps whose figures are still to come, on rank 0."""
        return frozenset([*self._waiting, *([] if self._child is None else [self._child[0]])])

    def folder(self, step: int) -> Path:
        """Folder that the validation of a step writes into."""
        return self.run.validation / folder_name(step)

    def _collect(self, step: int, code: int) -> None:
        folder = self.folder(step)
        try:
            if code == 0:
                self._log_figures(step, _figures(folder / RESULT))
                self._keep(step, folder / "weights")
                return
            reason = _reason(folder / LOG, code)
        except (ValueError, OverflowError) as error:
            reason = str(error)
        self._fail(step, reason)

    def _fail(self, step: int, reason: str) -> None:
        # A failure must not end the training. The weights of the newest failed validation stay, those of an older one
        # go.
        log.warning("the validation of step %d failed, training goes on: %s", step, reason)
        if self._failed is not None:
            shutil.rmtree(self.folder(self._failed) / "weights", ignore_errors=True)
        self._failed = step


def run_validation(
    run: RunFolder,
    step: int,
    data: DataSets,
    parent: int | None = None,
    device: torch.device | None = None,
    crew: Crew = ONE,
) -> Path:
    """Validate the weights of a step in this process, or in those of a crew, each of which calls it.

    Args:
        run: Folder of the run.
        step: Step whose weights are validated.
        data: The data sets.
        parent: Process id of the training, of which this process is a child: it lowers its priority, and ends when the
            training ends. None: not a child.
        device: Device to validate on; None: by the settings of the run.
        crew: Processes that validate together.

    Returns:
        Folder with what the validation wrote.

    Raises:
        ValueError: The weights of that step are not there, or the task cannot be validated.
        CrewError: Another process of the crew has failed.
    """
    # A child of the training must not outlive it, nor take its processor. The training has warned of the owner.
    if parent is not None:
        end_with(parent)
        os.nice(_NICENESS)
    elif crew.first:
        warn_of_owner(run.path)
    folder = run.validation / folder_name(step)
    started = time.perf_counter()
    figures = shared(lambda: _validated(run, step, data, device, crew), crew)
    # The figures are written last: their file says that the validation is done.
    if crew.first:
        write_previews(folder)
        write_whole(folder / RESULT, json.dumps(figures).encode())
        log.info("validated step %d in %.1f s", step, time.perf_counter() - started)
    return folder


def _validated(run: RunFolder, step: int, data: DataSets, device: torch.device | None, crew: Crew) -> dict[str, float]:
    """Figures of the weights of a step; arguments and errors are those of `run_validation`."""
    folder = run.validation / folder_name(step)
    waiting, kept = folder / "weights", run.kept_weights / folder_name(step)
    weights = waiting if waiting.is_dir() else kept
    if not weights.is_dir():
        there = {
            other for other in steps_in(run.validation) if (run.validation / folder_name(other) / "weights").is_dir()
        }
        there |= set(steps_in(run.kept_weights))
        raise ValueError(
            f"the weights of step {step} are neither in {run.kept_weights} nor in {run.validation}"
            f" (there: {', '.join(map(str, sorted(there))) or 'none'}); python -m infer evaluate measures {run.export}"
        )
    set_arithmetic(run.recipe.train.parallel)
    task = make_task(run.task, run.recipe.config, data, run.task_folder)
    return task.validate(weights, folder, device or device_of(run.recipe.train.validation), crew)


def _start(run: RunFolder, step: int, config: ValidationConfig) -> subprocess.Popen[bytes]:
    # The variables of torchrun or SLURM would make the child a rank. It may use a quarter of the cores.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_THE_RANKS and not name.startswith(("TORCHELASTIC_", "SLURM_"))
    }
    environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // 4))
    if config.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = ["-m", "train", "validate", "--run", str(run.path), "--step", str(step), "--parent", str(os.getpid())]
    with os.fdopen(open_own(run.validation / folder_name(step) / LOG), "wb") as output:
        output.truncate(0)
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C at the training does not reach it, and `close` can end it with its child
            # processes.
            start_new_session=True,
        )


def _figures(file: Path) -> dict[str, float]:
    """Result of a validation: figures by name."""
    value = read_json(file, _RESULT_BYTES)
    numbers = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"{file} does not hold figures by name")
    return {name: float(number) for name, number in value.items()}


def _reason(file: Path, code: int) -> str:
    with open_regular(file) as stream:
        stream.seek(-min(stream.seek(0, os.SEEK_END), _LOG_END_BYTES), os.SEEK_END)
        text = stream.read().decode(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if lines:
        return f"{lines[-1].removeprefix('error: ')} (see {file})"
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return f"{how}, see {file}"
