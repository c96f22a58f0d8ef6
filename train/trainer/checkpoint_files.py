"""Files of checkpoints: PyTorch's distributed format, with a hash next to each file, and a commit by renaming.

A folder has its final name only if every file of every rank is on the disk. `CheckpointFolder` is the one place that
knows how the checkpoints of a run are listed, committed, set aside and removed. Reading needs no trust in a folder:
nothing but tensors and the names of their parts can come out of it (`train.trainer.checkpoint_content`).
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from talkinghead.config import shown
from talkinghead.files.atomic import sweep, sync, write_whole
from talkinghead.files.foreign import open_regular, parse_json, read_limited
from talkinghead.provenance import hash_bytes, hash_file, hash_stream, pretty_json
from talkinghead.runtime.errors import is_machine_error, naming
from train.run.run_config import is_run_id
from train.run.run_folder import folder_name, steps_in
from train.run.run_store import DAMAGED, HASH
from train.trainer.checkpoint_content import LATER, metadata_limit, read_metadata, read_tensor

log = logging.getLogger(__name__)

LAST = "last"
ABOUT = "checkpoint.json"
_FORMAT = 1
_METADATA = ".metadata"
_SUFFIX = ".distcp"
_HASH_BYTES = 1000
_ABOUT_BYTES = 10_000
_TENSOR_FILE = re.compile(r"__\d+_\d+\.distcp", re.ASCII)  # PyTorch's name: rank, number of the file


@dataclass(frozen=True, kw_only=True)
class About:
    """Content of `checkpoint.json`: which step of which run a checkpoint is of. Older ones have no such file."""

    step: int
    run: str | None
    """Identity of the run; None where older code made it."""

    def to_json(self) -> bytes:
        """Text of the file."""
        return pretty_json({"format": _FORMAT} | dataclasses.asdict(self))

    @classmethod
    def from_json(cls, value: Any) -> About:
        """Inverse of `to_json`; raises `ValueError` for anything else."""
        if not isinstance(value, dict) or not isinstance(value.get("format"), int):
            raise ValueError(f"{ABOUT} is none of ours")
        if value["format"] != _FORMAT:
            raise ValueError(f"{ABOUT} has format {shown(value['format'])}, this code reads {_FORMAT}")
        step, run = value.get("step"), value.get("run")
        if type(step) is not int or not (run is None or is_run_id(run)):
            raise ValueError(f"{ABOUT} does not name a step and a run")
        return cls(step=step, run=run)


class CheckpointFolder:
    """RUN/checkpoints. What changes it is called on rank 0, while no other training runs in RUN.

    A run on an object store has another one (`train.trainer.stored_checkpoints`), for which ranks also call `written`,
    `settle` and `fetch`; here these do nothing, since all machines share the folder.

    Args:
        path: The folder.
        run: Identity of the run; None where it has none.
    """

    first = False
    """Whether this rank looks after a folder of its machine alone."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        self.path, self.run = path, run

    def open(self) -> None:
        """Make the folder, and remove what killed writers left.

        Raises:
            ValueError: A checkpoint is of another run, or all that are left are damaged ones.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        # A checkpoint that was copied in must neither be trained from nor be removed with our own old ones.
        steps = self.steps()
        for step in steps:
            self._check_own(step)
        if not steps and (aside := self.aside()):
            raise ValueError(
                f"{self.path} has no whole checkpoint, only damaged ones that were set aside ({aside[-1]}): bring back"
                " a copy of a whole one, or move these away to begin anew"
            )

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return whole_steps(self.path)

    def aside(self) -> list[str]:
        """Names of damaged checkpoints that were set aside."""
        return sorted(entry.name for entry in self.path.glob(f"{DAMAGED}*"))

    def fetch(self, step: int) -> None:
        """Bring the files of a checkpoint to this machine. Every rank calls it before any reads them."""

    def check(self) -> None:
        """Raise `ValueError` where this training may write no more."""

    def folder_of(self, step: int) -> Path:
        """Folder of the checkpoint of a step; it may be missing."""
        return self.path / folder_name(step)

    def temporary(self, step: int, token: str) -> Path:
        """Folder that the ranks write the checkpoint of a step into.

        Args:
            step: The step.
            token: Eight hexadecimal digits, equal on every rank: a rank that outlived a killed training may still be
                writing, so each start has its own.
        """
        return self.path / f".{folder_name(step)}.tmp-{token}"

    def written(self, temporary: Path, files: Sequence[Path]) -> None:
        """Take files that this rank has written; a checkpoint is committed after those of all ranks."""

    def settle(self, temporary: Path, step: int) -> None:
        """Tidy up on this machine after a commit. Every rank calls it."""

    def commit(self, temporary: Path, step: int, names: Collection[str]) -> None:
        """Give a checkpoint that all ranks have written its final name, and name it in `last`.

        Args:
            temporary: Folder that it was written into.
            step: Its step.
            names: Names of the files that it must have.

        Raises:
            ValueError: One is missing.
        """
        _check_there(temporary, names)
        write_hashed(temporary / ABOUT, About(step=step, run=self.run).to_json())
        sync(temporary)
        target = self.folder_of(step)
        if target.exists():
            self.remove(step)
        temporary.rename(target)
        sync(self.path)
        self._name_last(step)

    def remove(self, step: int) -> None:
        """Remove the checkpoint of a step, as far as the system lets us; what cannot be removed is logged."""
        # Rename first: a folder that is half removed must never have the name of a whole checkpoint.
        folder = self.folder_of(step)
        doomed = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
        try:
            folder.rename(doomed)
        except OSError as error:
            log.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror or error)
        shutil.rmtree(doomed, ignore_errors=True)

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that it counts no more, and is not removed; returns its new folder."""
        folder = self.folder_of(step)
        names = (f"{DAMAGED}{folder.name}{f'-{number}' if number else ''}" for number in range(1 << 20))
        target = next(self.path / name for name in names if not (self.path / name).exists())
        folder.rename(target)
        sync(self.path)
        if steps := self.steps():
            self._name_last(steps[-1])
        return target

    def _name_last(self, step: int) -> None:
        write_whole(self.path / LAST, f"{folder_name(step)}\n".encode())

    def _check_own(self, step: int) -> None:
        folder = self.folder_of(step)
        about = read_about(folder)
        if about is None:
            return
        if about.run is not None and self.run is not None and about.run != self.run:
            raise ValueError(
                f"checkpoint {folder} is of another run ({about.run}; this one is {self.run}): take it out of this"
                " folder"
            )
        if about.step != step:
            raise ValueError(f"checkpoint {folder} is of step {about.step}: give it back its name, or take it out")


def whole_steps(folder: Path) -> list[int]:
    """Steps with a whole checkpoint in RUN/checkpoints, ascending."""
    return steps_in(folder)


def read_about(folder: Path) -> About | None:
    """What a checkpoint says about itself; None where it says nothing, or where that is not as it was written.

    Whether it is damaged, `find_damage` tells.
    """
    file = folder / ABOUT
    try:
        return About.from_json(parse_json(_as_written(file), ABOUT))
    except (OSError, ValueError) as error:
        if is_machine_error(error):
            raise
        return None


def _as_written(file: Path) -> bytes:
    """Content of `checkpoint.json`; raises `ValueError` where it does not have its hash."""
    data = read_limited(file, _ABOUT_BYTES, ABOUT)
    if hash_bytes(data) != _hash_of(file):
        raise ValueError(f"{file.name} is not as it was written")
    return data


def _hash_of(file: Path) -> str:
    return read_limited(file.with_name(file.name + HASH), _HASH_BYTES, "hash").decode(errors="replace").strip()


def write_hashed(file: Path, data: bytes) -> None:
    """Write a file of a checkpoint, and its hash next to it."""
    write_whole(file, data)
    _write_hash(file)


def _write_hash(file: Path) -> None:
    write_whole(_hash_next_to(file), hash_file(file).encode())


def _hash_next_to(file: Path) -> Path:
    return file.with_name(file.name + HASH)


class CheckpointWriter(FileSystemWriter):
    """Writer of one checkpoint: every rank writes into a temporary folder, and rank 0 commits it when all are done.

    Args:
        temporary: Folder that is written to, equal on every rank; must not exist.
        written: What each rank does when its own files are on the disk.
        commit: What rank 0 does when those of all ranks are, with their names.
    """

    def __init__(
        self,
        temporary: Path,
        written: Callable[[Sequence[Path]], None],
        commit: Callable[[Collection[str]], None],
    ) -> None:
        super().__init__(temporary, sync_files=True)
        self.temporary, self.written, self.commit = temporary, written, commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write the files of this rank, and their hashes."""
        try:
            written = super().write_data(plan, planner)
        except RuntimeError as error:
            # torch.save turns a full disk into "unexpected pos 704 vs 598"; the OSError is only the cause of that.
            cause = error.__cause__ or error.__context__
            if isinstance(cause, OSError):
                raise cause from error
            raise
        # Found by their prefix rather than in `written`: a rank that had nothing to write has left an empty file.
        files = sorted(self.temporary.glob(f"{plan.storage_data.prefix}*{_SUFFIX}"))
        for file in files:
            _write_hash(file)
        self.written([one for file in files for one in (file, _hash_next_to(file))])
        return written

    def storage_meta(self) -> StorageMeta:
        """Name of this writing, without the folder: a checkpoint says nothing about the machine."""
        return StorageMeta(save_id=self.save_id)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint on rank 0, after all ranks wrote."""
        # The metadata say in which file the parts of each tensor lie.
        super().finish(metadata, results)
        _write_hash(self.temporary / _METADATA)
        # Only when all files are there and on the disk, the folder gets its final name.
        self.commit({result.storage_data.relative_path for part in results for result in part})


def _check_there(folder: Path, names: Collection[str]) -> None:
    there = {entry.name for entry in folder.iterdir()}
    if missing := set(names) - there:
        raise ValueError(
            f"rank 0 does not see what other ranks wrote into {folder} ({min(missing)}): RUN must be on a file system"
            " that all machines share"
        )


class CheckpointReader(FileSystemReader):
    """Reader of a checkpoint that may be a stranger's: takes the tensors of a state out of it, and runs nothing.

    Args:
        folder: Folder of the checkpoint.
        state: Name → tensor to fill; a sharded one counts as a whole.

    Raises:
        OtherModel: It has other tensors than the state.
        ValueError: Its metadata are none of ours.
        OSError: They cannot be read.
    """

    def __init__(self, folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(folder)
        self.folder = folder
        data = read_limited(folder / _METADATA, metadata_limit(state), "metadata file of this model")
        about = {entry.name: entry.lstat() for entry in folder.iterdir() if _TENSOR_FILE.fullmatch(entry.name)}
        sizes = {name: found.st_size for name, found in about.items() if stat.S_ISREG(found.st_mode)}
        self._metadata = read_metadata(data, state, sizes)
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        self._kinds = {
            (name, tuple(chunk.offsets)): (tensor.properties.dtype, tuple(chunk.sizes))
            for name, tensor in self._metadata.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
            for chunk in tensor.chunks
        }

    def present(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """State, nested, without the parts that older code did not write."""
        there = {name.partition(".")[0] for name in self._metadata.state_dict_metadata}
        return {name: part for name, part in state.items() if name in there or name not in LATER}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Names, shapes and places of the tensors, as they were checked."""
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        """Fill the tensors of the plan; for each, only the parts that it needs are read.

        Raises:
            ValueError: A tensor is not what the metadata say.
        """
        items: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            items.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, asked in items.items():
            with open_regular(self.folder / name) as file:
                for item in asked:
                    index, place = item.storage_index, self.storage_data[item.storage_index]
                    dtype, shape = self._kinds[index.fqn, tuple(index.offset or ())]
                    try:
                        tensor = read_tensor(file, place.offset, place.length, dtype, shape)
                    except ValueError as error:
                        raise ValueError(f"{index.fqn} in {name}: {error}") from error
                    starts_and_counts = zip(item.storage_offsets, item.lengths, strict=True)
                    part = tensor[tuple(slice(start, start + count) for start, count in starts_and_counts)]
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done


class TensorsOnly(DefaultLoadPlanner):
    """Plan of reading a checkpoint in which there is nothing but tensors: PyTorch's own unpickles all else."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Refuse what is no tensor."""
        raise ValueError(f"{read_item.dest_index.fqn} is no tensor")


def find_damage(folder: Path, rank: int, world: int) -> str | None:
    """First defect of the files of a checkpoint, or None. Each rank reads its share of them: every `world`-th file.

    Raises:
        OSError: The machine has a fault (a mount, a disk), which says nothing about the checkpoint.
    """
    # Files that have a hash and files that should have one: a file or a hash that is missing is a defect, too.
    hashed = {entry.name.removesuffix(HASH) for entry in folder.glob(f"*{HASH}")}
    names = sorted({_METADATA} | hashed | {entry.name for entry in folder.glob(f"*{_SUFFIX}")})
    for name in names[rank::world]:
        file = folder / name
        try:
            if name == ABOUT:
                About.from_json(parse_json(_as_written(file), ABOUT))
                continue
            written = _hash_of(file)
            with naming(file), open_regular(file) as stream:
                if hash_stream(stream) != written:
                    return f"{name} is not as it was written"
        except ValueError as error:
            return str(error)
        except OSError as error:
            if is_machine_error(error):
                raise
            return f"{Path(error.filename or file).name}: {error.strerror}"
    return None
