"""Checkpoints to resume from: distributed, written in the background, whole or absent, loadable by any world size."""

from __future__ import annotations

import errno
import functools
import logging
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from talkinghead.runtime.errors import is_machine_error
from train.config import CheckpointConfig
from train.trainer.average import Ema
from train.trainer.checkpoint_content import OtherModel
from train.trainer.checkpoint_files import (
    CheckpointFolder,
    CheckpointReader,
    CheckpointWriter,
    TensorsOnly,
    find_damage,
)
from train.trainer.learner import Learner
from train.trainer.retention import Judged, removable_checkpoints
from train.trainer.staging import own_share

log = logging.getLogger(__name__)

# Without a process group PyTorch warns at each call that it saves from a single process, which is what we want.
warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")

T = TypeVar("T")
State = dict[str, Any]
"""Nested dicts of tensors, DTensors, int, float and bool."""


class DamagedCheckpoint(ValueError):
    """The files of a checkpoint are not as they were written.

    Attributes:
        step: Its step.
        defect: What is wrong with which file.
    """

    def __init__(self, folder: Path, step: int, defect: str) -> None:
        super().__init__(f"checkpoint {folder} is damaged: {defect}")
        self.step, self.defect = step, defect


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """Damaged checkpoint that a start passed over."""

    folder: str
    """Name of the folder that it has now, in RUN/checkpoints."""
    defect: str


class Checkpoints:
    """Checkpoints of a run. Every rank makes one such object, and all call the same methods in the same order.

    Args:
        folder: RUN/checkpoints; on a file system that all ranks share, but for `StoredCheckpoints`.
        config: Which checkpoints to keep, and whether to write in the background.
        rank: Number of this process.
        world: Number of processes; above 1 the default process group must exist.
        timeout_s: Seconds that a rank waits for the others.
        run: Identity of the run.

    Attributes:
        longest_s: Seconds that the longest checkpoint took, until that was noticed; None: there was none.
        set_aside: Damaged checkpoints that `restore` passed over, equal on every rank.

    Raises:
        ValueError: The folder holds a checkpoint of another run, or damaged ones alone.
    """

    def __init__(
        self,
        folder: CheckpointFolder | Path,
        config: CheckpointConfig,
        rank: int = 0,
        world: int = 1,
        timeout_s: float = 600.0,
        run: str | None = None,
    ) -> None:
        self.folder = CheckpointFolder(folder, run) if isinstance(folder, Path) else folder
        self.config, self.rank, self.world = config, rank, world
        self.set_aside: tuple[SetAside, ...] = ()
        assert world == 1 or dist.is_initialized()
        # A group of their own: messages of the background thread must not mix with those of the training.
        timeout = timedelta(seconds=timeout_s)
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        # Pinned memory and copies that do not block exist with CUDA only. Staging itself does not run in the
        # background: the state may change as soon as `save` returns.
        cuda = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(cuda, False, False, cuda))
        self._pending: Future[Any] | None = None
        self._pending_step, self._began = 0, 0.0
        self.longest_s: float | None = None
        # A rank that outlived a killed training may still be writing: each start uses temporary names of its own.
        self._token = self._from_rank_zero(self._open)
        self._newest = self.latest()

    def _open(self) -> str:
        self.folder.open()
        return uuid.uuid4().hex[:8]

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, equal on every rank; None without one."""
        return self._from_rank_zero(lambda: max(self.folder.steps(), default=None))

    def save(self, step: int, state: State, *, block: bool = False, judged: Judged | None = None) -> None:
        """Write a checkpoint, unless this step has one already.

        Waits for an earlier one, then takes a copy of the state; the rest happens in the background, if the settings
        say so. The state may change as soon as this returns.

        Args:
            step: Number of steps that are done.
            state: State to keep.
            block: Whether to return only when the checkpoint is whole.
            judged: What is known about the steps now, on rank 0: older checkpoints stay or go by it once this one is
                whole.

        Raises:
            OSError: No space is left, or the machine has another fault. Earlier checkpoints are as they were.
            ValueError: The ranks do not share a file system.
        """
        # One at a time; an error in writing the one before is raised here.
        self.wait()
        if step == self._newest:
            return
        # Every rank writes into the same temporary folder; `CheckpointWriter.finish` renames it when all are done.
        temporary, known = self.folder.temporary(step, self._token), judged or Judged()

        def commit(names: Collection[str]) -> None:
            self.folder.commit(temporary, step, names)
            # Older checkpoints go only now that a newer one is whole.
            self._drop(known)

        writer = CheckpointWriter(temporary, functools.partial(self.folder.written, temporary), commit)
        options: dict[str, Any] = {"storage_writer": writer, "process_group": self._group, "no_dist": self._alone}
        # Write in the background from a copy of the state, or here and now. What other ranks have, too, one of them
        # copies.
        share = own_share(_tensors(state), self.rank, self.world)
        self._pending_step, self._began = step, time.monotonic()
        if self.config.asynchronous and not block:
            future = async_save(share, async_stager=self._stager, **options)
            assert isinstance(future, Future)
            self._pending = future
        else:
            self._finish(lambda: save(share, **options))

    def poll(self) -> None:
        """Raise an error of the background writer, as `save` does. Never waits."""
        self.folder.check()
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more; raises as `save` does."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._finish(pending.result)

    def retain(self, judged: Judged) -> None:
        """Remove checkpoints that need not stay any more, now that more is known about the steps; on rank 0 alone.

        While one is being written nothing happens: the next one that is whole brings them down as well.
        """
        if self._pending is None:
            self._drop(judged)

    def _drop(self, judged: Judged) -> None:
        for step in removable_checkpoints(self.folder.steps(), self.config, judged):
            self.folder.remove(step)

    def restore(self, state: State) -> int | None:
        """Fill a state from the newest checkpoint that is not damaged; see `load`.

        Damaged ones are passed over with a warning, and set aside: renamed, so that they count no more. This happens
        only when there is one to go on from.

        Returns:
            Step of the checkpoint, equal on every rank; None where there is none.

        Raises:
            ValueError: All are damaged, or the newest one that is not is of another model.
            OSError: The machine has a fault.
        """
        damaged: list[DamagedCheckpoint] = []
        for step in reversed(self._from_rank_zero(self.folder.steps)):
            try:
                self.load(step, state)
            except DamagedCheckpoint as error:
                damaged.append(error)
                continue
            self.set_aside = self._from_rank_zero(lambda: tuple(map(self._put_aside, damaged)))
            for found in self.set_aside:
                text = "checkpoint %s is damaged (%s): it is called %s now, and the training goes on from step %d"
                log.warning(text, found.folder.removeprefix("damaged-"), found.defect, found.folder, step)
            return step
        if damaged:
            newest = self.folder.folder_of(damaged[0].step).name
            raise ValueError(
                f"every checkpoint in {self.folder.path} is damaged (the newest: {newest}, {damaged[0].defect}): bring"
                " back a copy of one, or move that folder away to begin anew"
            )
        return None

    def _put_aside(self, damaged: DamagedCheckpoint) -> SetAside:
        return SetAside(folder=self.folder.set_aside(damaged.step).name, defect=damaged.defect)

    def load(self, step: int, state: State) -> None:
        """Fill a state of the same structure: tensors in place, numbers in their dicts.

        Raises:
            DamagedCheckpoint: The checkpoint is damaged; raised on every rank.
            ValueError: It is of another model.
            OSError: The machine has a fault.
        """
        # Are the files as they were written? Each rank reads its share of them, and all learn of any damage.
        folder = self.folder.folder_of(step)
        self._agree(step, lambda: self.folder.fetch(step))
        self._agree(step, lambda: self._check(folder))
        # Is it a checkpoint of this model? Each rank looks for itself, before all read together.
        tensors = _tensors(state)
        reader = self._agree(step, lambda: _reader(folder, tensors))
        try:
            present, planner = reader.present(tensors), TensorsOnly()
            load(present, storage_reader=reader, planner=planner, process_group=self._group, no_dist=self._alone)
        except CheckpointException as error:
            cause = _first(error)
            if isinstance(cause, OSError) and not is_machine_error(cause):
                raise DamagedCheckpoint(folder, step, f"{cause.filename}: {cause.strerror}") from error
            if isinstance(cause, ValueError):
                raise DamagedCheckpoint(folder, step, str(cause)) from error
            if isinstance(cause, OSError):
                raise cause from error
            raise ValueError(f"checkpoint {folder} does not fit: {cause}; take another RUN") from error
        # Numbers go back to where they were.
        _write_back(state, tensors)
        self._newest = step

    def close(self) -> None:
        """Wait for the writer and free its buffers. An error is only logged: another may be ending the run."""
        try:
            self.wait()
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("%s", error)
        finally:
            self._stager.close()

    def _finish(self, writing: Callable[[], Any]) -> None:
        step = self._pending_step
        try:
            writing()
        except CheckpointException as error:
            # Free the space at once: a full disk is the likeliest cause. Other ranks here see the same folder.
            if self.rank == 0 or self.folder.first:
                shutil.rmtree(self.folder.temporary(step, self._token), ignore_errors=True)
            raise self._explained(step, _first(error)) from error
        self.folder.settle(self.folder.temporary(step, self._token), step)
        self._newest = step
        self.longest_s = max(self.longest_s or 0.0, time.monotonic() - self._began)

    def _explained(self, step: int, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        there = f"the one of step {self._newest} is whole" if self._newest is not None else "there is none yet"
        text = f"cannot write the checkpoint of step {step} to {self.folder.path}: {error.strerror or error} ({there})"
        return OSError(error.errno or errno.EIO, text)

    def _check(self, folder: Path) -> None:
        if (defect := find_damage(folder, self.rank, self.world)) is not None:
            raise ValueError(defect)

    def _agree(self, step: int, look: Callable[[], T]) -> T:
        """What `look` finds in a checkpoint, on this rank; what it raises on any rank, is raised on all."""
        found: list[T] = []
        failed: str | Exception | None = None
        try:
            found.append(look())
        except OtherModel as error:
            folder = self.folder.folder_of(step)
            failed = ValueError(f"checkpoint {folder} is of another model: {error}; take another RUN")
        except ValueError as error:
            failed = str(error)
        except OSError as error:
            failed = error if is_machine_error(error) else f"{error.filename}: {error.strerror}"
        for other in self._from_all(failed):
            if isinstance(other, Exception):
                raise other
            if other is not None:
                raise DamagedCheckpoint(self.folder.folder_of(step), step, other)
        return found[0]

    @property
    def _alone(self) -> bool:
        return self._group is None

    def _from_rank_zero(self, function: Callable[[], T]) -> T:
        """Value that `function` returns on rank 0, on every rank; its `OSError` or `ValueError` is raised on all."""
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except (OSError, ValueError) as error:
                answer[1] = error
        if self._group is not None:
            dist.broadcast_object_list(answer, src=0, group=self._group)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _from_all(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values


def _reader(folder: Path, tensors: State) -> CheckpointReader:
    return CheckpointReader(folder, _flat(tensors))


def _first(error: CheckpointException) -> BaseException:
    """Error of the lowest failing rank."""
    return error.failures[min(error.failures)][0]


def _tensors(state: Mapping[str, Any]) -> State:
    """State with the same nesting and tensors only: a number would be stored as a pickle. Empty dicts are left out."""
    found: State = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            if inner := _tensors(value):
                found[name] = inner
        elif isinstance(value, torch.Tensor):
            found[name] = value.detach()
        else:
            assert isinstance(value, (bool, int, float)), f"{name} is a {type(value).__name__}"
            found[name] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return found


def _flat(tensors: State, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested tensors by the names by which a checkpoint knows them: PyTorch joins the keys with dots."""
    found: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _write_back(state: State, tensors: State) -> None:
    for name, value in state.items():
        if isinstance(value, Mapping):
            assert isinstance(value, dict)
            _write_back(value, tensors.get(name, {}))
        elif not isinstance(value, torch.Tensor):
            state[name] = tensors[name].item()


_OPTIONS = StateDictOptions(ignore_frozen_params=True)


def training_state(learner: Learner, ema: Ema, critic: Learner | None = None) -> dict[str, Any]:
    """Weights, moments and averages by the names of the bare module, so that any wrapping and world size can load them.

    Frozen parameters are left out: `Task.build` brings them. So are the optimizer's settings: they come from the
    recipe. The tensors are those of the training, not copies: filling them restores it.

    Args:
        learner: Module in training, its optimizer's state in place.
        ema: Averages of its parameters; none are kept with decay 0.
        critic: Critic in training, whose state gets the name `adversary`; it has no averages.
    """
    state = _state_of(learner) | {"ema": ema.state()}
    return state if critic is None else state | {"adversary": _state_of(critic)}


def _state_of(learner: Learner) -> dict[str, Any]:
    # `state.<parameter>.<moment>`: the names that PyTorch's own flat state of an optimizer has.
    kept = learner.optimizer.state
    moments = {
        f"state.{name}.{moment}": value
        for name, parameter in learner.parameters.items()
        for moment, value in kept[parameter].items()
    }
    return {"module": get_model_state_dict(learner.module, options=_OPTIONS), "optimizer": moments}
