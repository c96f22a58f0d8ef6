"""Files of one checkpoint: PyTorch's distributed format, with a hash next to each file, and a commit by renaming.

A folder has its final name only if every file of every rank is on the disk. Reading needs no trust in the folder:
nothing but tensors and the names of their parts can come out of it (`train.trainer.checkpoint_content`).
"""

from __future__ import annotations

import logging
import re
import shutil
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from talkinghead.files.atomic import sync, write_whole
from talkinghead.files.foreign import open_regular, read_limited
from talkinghead.provenance import hash_file, hash_stream
from train.run.run_folder import folder_name, steps_in
from train.trainer.checkpoint_content import metadata_limit, read_metadata, read_tensor

log = logging.getLogger(__name__)

LAST = "last"
_METADATA = ".metadata"
_SUFFIX = ".distcp"
_HASH = ".sha256"
_HASH_BYTES = 1000
_TENSOR_FILE = re.compile(r"__\d+_\d+\.distcp", re.ASCII)  # PyTorch's name: rank, number of the file


def whole_steps(folder: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending."""
    return steps_in(folder)


class CheckpointWriter(FileSystemWriter):
    """Writer of one checkpoint: every rank writes into a temporary folder, and rank 0 renames it when all are done.

    Args:
        temporary: Folder that is written to, equal on every rank; must not exist.
        target: Final name of the folder.
        keep: Number of checkpoints that stay next to each other, the newest ones.
    """

    def __init__(self, temporary: Path, target: Path, keep: int) -> None:
        super().__init__(temporary, sync_files=True)
        self.temporary, self.target, self.keep = temporary, target, keep

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
        for file in sorted(self.temporary.glob(f"{plan.storage_data.prefix}*{_SUFFIX}")):
            write_whole(file.with_name(file.name + _HASH), hash_file(file).encode())
        return written

    def storage_meta(self) -> StorageMeta:
        """Name of this writing, without the folder: a checkpoint says nothing about the machine."""
        return StorageMeta(save_id=self.save_id)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint on rank 0, after all ranks wrote: check, rename, name it in `last`, drop old ones."""
        # The metadata say in which file the parts of each tensor lie; they are the last file to be written.
        super().finish(metadata, results)
        file = self.temporary / _METADATA
        write_whole(file.with_name(file.name + _HASH), hash_file(file).encode())
        # Only when all files are there and on the disk, the folder gets its final name.
        _check_there(self.temporary, {result.storage_data.relative_path for part in results for result in part})
        sync(self.temporary)
        if self.target.exists():
            _remove(self.target)
        self.temporary.rename(self.target)
        sync(self.target.parent)
        write_whole(self.target.parent / LAST, f"{self.target.name}\n".encode())
        # Older checkpoints go only now that a newer one is whole.
        for step in whole_steps(self.target.parent)[: -self.keep]:
            _remove(self.target.parent / folder_name(step))


def _check_there(folder: Path, names: set[str]) -> None:
    there = {entry.name for entry in folder.iterdir()}
    if missing := names - there:
        raise ValueError(
            f"rank 0 does not see what other ranks wrote into {folder} ({min(missing)}): RUN must be on a file system"
            " that all machines share"
        )


def _remove(folder: Path) -> None:
    # Rename first: a folder that is half removed must never have the name of a whole checkpoint.
    doomed = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        folder.rename(doomed)
    except OSError as error:
        log.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror or error)
    shutil.rmtree(doomed, ignore_errors=True)


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
    """First defect of the files of a checkpoint, or None. Each rank reads its share of them: every `world`-th file."""
    # Files that have a hash and files that should have one: a file or a hash that is missing is a defect, too.
    hashed = {entry.name.removesuffix(_HASH) for entry in folder.glob(f"*{_HASH}")}
    names = sorted({_METADATA} | hashed | {entry.name for entry in folder.glob(f"*{_SUFFIX}")})
    for name in names[rank::world]:
        file = folder / name
        try:
            written = read_limited(file.with_name(name + _HASH), _HASH_BYTES, "hash").decode(errors="replace")
            with open_regular(file) as stream:
                if hash_stream(stream) != written.strip():
                    return f"{name} is not as it was written"
        except ValueError as error:
            return str(error)
        except OSError as error:
            return f"{Path(error.filename or file).name}: {error.strerror}"
    return None
