"""Examination of a training before it starts: would it start, and do memory, time and disk suffice?

1. The checks of a start: ranks, RUN, weights, data (nothing is created).
2. What its networks take, exactly (`train.doctor.footprint`).
3. What a few real steps of one rank take here (`train.doctor.measurement`).
4. Both, for all ranks of this machine, against the memory and the disk that there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talkinghead.files.atomic import temporary_folder
from talkinghead.runtime.errors import error_text, is_machine_error
from train.clip_choice import check_no_removal
from train.config import TrainConfig
from train.doctor.footprint import Footprint, footprint, size_text
from train.doctor.measurement import Measured, Room, measure
from train.launch.failure import microbatch_in_force
from train.launch.start import LaunchSettings, started_outside
from train.microbatch import microbatch_text
from train.recipe import make_task
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder, check_place, has_trained, place_of, steps_in, with_microbatch, with_places
from train.run.run_lock import LOCK, locked
from train.run.sinks import check_online
from train.task import Provenance
from train.trainer.retention import most_checkpoints

_VALIDATIONS = 3
"""Most copies of the weights that wait for their validation, with the one that runs (`train.run.validation`)."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Space that a run takes in its folder, in bytes."""

    checkpoint_bytes: int
    checkpoints: int
    """Number of checkpoints that are added, the one that is being written included."""
    export_bytes: int
    """Size of `pretrained_model`, and of the weights of each step that is validated."""
    export_is_least: bool
    """Whether that counts the trained module only, since no export was written."""
    copies: int
    """Most copies of weights at a time that are validated or stay after it."""
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Space that is added to what is there."""
        return self.checkpoints * self.checkpoint_bytes + (1 + self.copies) * self.export_bytes


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is known of a training before it starts."""

    task: str
    recipe: str
    run: str
    data: str
    steps: int
    done: int = 0
    """Step from which the training goes on."""
    samples: int
    """Samples of a step."""
    microbatches: str
    """Microbatches, in words."""
    ranks: int
    fitting_ranks: list[int]
    """Numbers of ranks that can share a step."""
    weights: Mapping[str, Provenance] = field(default_factory=dict)
    needed: Footprint | None = None
    """Footprint of one of the ranks."""
    room: Room | None = None
    measured: Measured | None = None
    device_bytes: int | None = None
    """Memory that a rank takes on its GPU."""
    host_bytes: int | None = None
    """Memory that all ranks of this machine take, without their reading processes."""
    seconds: float | None = None
    """Seconds of all steps that are left."""
    disk: Disk | None = None
    problems: list[str] = field(default_factory=list)
    """What does not fit, the first one first; empty: the training can start."""


def examine(path: str | Path, config: RunConfig, settings: LaunchSettings, data: Any = None) -> Examination:
    """Examine a training. RUN and the data set stay as they are.

    Args:
        path: RUN.
        config: Task, recipe and data.
        settings: Launcher, and number of ranks.
        data: The data, where config.json must not name it in full.

    Raises:
        ValueError: It was started by a torchrun, or as one of several tasks of SLURM.
        OSError: The machine has a fault.
    """
    if started_outside():
        raise ValueError("doctor measures one rank: start it without torchrun or srun, and name the ranks by --workers")
    train = config.recipe.train
    found = Examination(
        task=config.task,
        recipe=config.recipe_name,
        run=str(path),
        data=config.data,
        steps=train.steps,
        samples=train.global_batch,
        microbatches=microbatch_text(train),
        ranks=settings.workers,
        fitting_ranks=train.fitting_ranks,
    )
    # Would it start? Everything that does not fit is told, and then there is nothing to measure.
    launcher = "local"
    with _noted(found.problems):
        launcher = settings.launcher(config.recipe)
        check_online(train.log)
    if not found.problems:  # else the ranks cannot share a step
        with _noted(found.problems):
            config = with_microbatch(path, config, settings.workers)
            found = dataclasses.replace(found, microbatches=microbatch_text(config.recipe.train))
    checked: RunConfig | None = None
    with _noted(found.problems):
        checked = _checked(path, config, data)
        found = dataclasses.replace(found, weights=checked.weights)
    with _noted(found.problems):
        found = dataclasses.replace(found, done=_look_at(path, checked))
    if checked is None or found.problems:
        return found
    # What does it take, and does it fit? On a machine of a Ray cluster there may be any of the ranks: one is counted.
    here = settings.workers if launcher in ("local", "processes") else 1
    with _noted(found.problems):
        return _judged(found, checked, data or checked.data_sets, here)
    return found


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Context that notes why a request cannot be met, and goes on after it."""
    try:
        yield
    except (ValueError, OSError) as error:
        if is_machine_error(error):
            raise
        text = " ".join(error_text(error).split())
        if text not in problems:  # several checks may meet it
            problems.append(text)


# --- would it start? --------------------------------------------------------------------------------------------------


def _checked(path: str | Path, config: RunConfig, data: Any) -> RunConfig:
    """Run with the provenance of its weights; what `train.run.run_folder.begin` checks first."""
    folder = check_place(path) / "task"
    data = data or config.data_sets
    weights = make_task(config.task, config.recipe.config, data, folder).check()
    for location in data.locations:
        check_no_removal(location)
    recipe = dataclasses.replace(config.recipe, config=with_places(config.recipe.config, weights))
    return dataclasses.replace(config, recipe=recipe, weights=weights)


def _look_at(path: str | Path, config: RunConfig | None) -> int:
    """Step from which a training in RUN would go on; what `RunFolder.start` checks, without making anything.

    Args:
        path: RUN.
        config: Run that is asked for; None: its weights are not known, and settings are not compared.
    """
    folder, store = place_of(path)
    there = RunFolder._there(folder, store)
    if folder.is_dir():
        if (folder / LOCK).exists():
            with locked(folder, patience_s=0.0):
                pass
    elif folder.exists():
        raise ValueError(f"RUN {folder} is no folder")
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"RUN {folder} cannot be written: {place} lets this user make nothing in it")
    if there is None or not has_trained(folder, store):
        return 0
    if config is not None:
        RunFolder._check_alike(there, config, folder)
    return max(steps_in(folder / "checkpoints") if store is None else store.listing().steps(), default=0)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


# --- does it fit? -----------------------------------------------------------------------------------------------------


def _judged(found: Examination, config: RunConfig, data: Any, here: int) -> Examination:
    """Examination with what is counted and measured, against what there is.

    Args:
        found: What is known so far.
        config: Run that is asked for.
        data: Its data, as `make_task` takes it.
        here: Number of ranks on this machine.
    """
    train, run = config.recipe.train, check_place(found.run)
    with tempfile.TemporaryDirectory(prefix="talkinghead-doctor-") as folder:
        # A run that goes on has what the task derives.
        derived = run / "task"
        if not found.done:
            derived = temporary_folder(Path(folder) / "task")
            make_task(config.task, config.recipe.config, data, derived).prepare()
        # Count each of the ranks, and the one rank that is measured, which holds all shards.
        task = make_task(config.task, config.recipe.config, data, derived)
        share = dataclasses.replace(
            train,
            global_batch=train.microbatch_size * train.accumulation(found.ranks),
            parallel=dataclasses.replace(train.parallel, shard_within=None),
        )
        needed = footprint(task, config.recipe, found.ranks, here)
        single = footprint(task, dataclasses.replace(config.recipe, train=share))
        del task  # with weights that it may have read
        recipe = dataclasses.replace(config.recipe, train=share)
        outcome = measure(dataclasses.replace(config, recipe=recipe), data, derived, here, single)
    found = dataclasses.replace(found, needed=needed, room=outcome.room, measured=outcome.measured)
    if (measured := outcome.measured) is not None:
        device, host = measured.device_bytes, measured.host_bytes
        more = needed.state_bytes - single.state_bytes
        device, host = (None, host + more) if device is None else (device + more, host)
        found = dataclasses.replace(
            found,
            device_bytes=device,
            host_bytes=host * here - (here - 1) * needed.copy_bytes,  # rank 0 alone keeps a copy for exports
            seconds=measured.step_s * max(0, train.steps - found.done),
        )
    found = dataclasses.replace(found, disk=_disk(run, train, needed, outcome.measured, found.done))
    problems = [outcome.problem] if outcome.problem is not None else [*_memory_problems(found, train)]
    return dataclasses.replace(found, problems=[*problems, *_disk_problems(found)])


def _memory_problems(found: Examination, train: TrainConfig) -> Iterator[str]:
    room, needed = found.room, found.needed
    if room is None or needed is None:
        return
    # What is held all the time, then what the measured steps took.
    state = f"weights, gradients, moments and averages of a rank take {size_text(needed.state_bytes)}"
    less = "train less of it (--lora.match), keep no averages (--train.ema.decay 0), or share it out (fsdp2)"
    microbatches, smaller = microbatch_in_force(train)
    if room.device_bytes is not None:
        free = f"{size_text(room.device_bytes)} of {room.device} are free"
        if needed.state_bytes > room.device_bytes:
            yield f"{state}, and {free}: {less}"
        elif found.device_bytes is not None and found.device_bytes > room.device_bytes:
            yield f"a rank takes {size_text(found.device_bytes)} with {microbatches}, and {free}: {smaller}"
    free = f"{size_text(room.host_bytes)} of this machine's memory are free"
    if room.device_bytes is None and needed.state_bytes + needed.copy_bytes > room.host_bytes:
        yield f"{state}, a copy for exports {size_text(needed.copy_bytes)}, and {free}: {less}"
    elif found.host_bytes is not None and found.host_bytes > room.host_bytes:
        yield f"the ranks here take {size_text(found.host_bytes)} with {microbatches}, and {free}: {smaller}"


def _disk_problems(found: Examination) -> Iterator[str]:
    disk = found.disk
    if disk is not None and disk.needed_bytes > disk.free_bytes:
        yield (
            f"RUN {found.run} takes up to {size_text(disk.needed_bytes)}, and {size_text(disk.free_bytes)} of its disk"
            " are free: take another RUN, a smaller --train.checkpoint.keep, or --train.checkpoint.keep-validated none"
        )


def _disk(run: Path, train: TrainConfig, needed: Footprint, measured: Measured | None, done: int) -> Disk:
    export = measured.export_bytes if measured is not None else None
    every = train.validation.every
    validations = -(-(train.steps - done) // every) if every else 0
    # Of the checkpoints that are there, the newest ones give way to new ones.
    there = min(len(steps_in(run / "checkpoints")), train.checkpoint.keep)
    config = train.checkpoint
    most = most_checkpoints(config, steps=train.steps - done, validations=validations, pending=_VALIDATIONS)
    # Weights of validated steps: all stay, or the best next to those that wait, or the latter alone.
    copies = {"all": validations, "best": _VALIDATIONS + 1, "none": _VALIDATIONS}[config.keep_validated]
    return Disk(
        checkpoint_bytes=needed.checkpoint_bytes,
        checkpoints=max(1, most - there),
        export_bytes=export or needed.copy_bytes,
        export_is_least=export is None,
        copies=min(copies, validations),
        free_bytes=shutil.disk_usage(_existing(run)).free,
    )
