"""Files of one checkpoint: PyTorch's distributed format, with a hash next to each file, and a commit by renaming.

A folder has its final name only if every file of every rank is on the disk. Reading needs no trust in the folder:
nothing but tensors and the names of their parts can come out of it.
"""

from __future__ import annotations

import io
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from talkinghead.files.atomic import sync, write_whole
from talkinghead.provenance import hash_file

log = logging.getLogger(__name__)

LAST = "last"
_PREFIX = "step-"
_METADATA = ".metadata"
_SUFFIX = ".distcp"
_HASH = ".sha256"
KNOWN_NAMES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}
"""(module, name) of everything that a metadata file, which is a pickle, may name; some are PyTorch's private names.
Dtypes may be named, too."""


def folder_name(step: int) -> str:
    """Name of a step's folder."""
    return f"{_PREFIX}{step:08d}"


def whole_steps(folder: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending."""
    names = [entry.name.removeprefix(_PREFIX) for entry in folder.glob(f"{_PREFIX}*") if entry.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


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
    doomed = folder.with_name(f".{folder.name}.tmp-removed")
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    except OSError as error:
        log.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror or error)
    shutil.rmtree(doomed, ignore_errors=True)


class CheckpointReader(FileSystemReader):
    """Reader of a checkpoint that runs nothing that a pickle may ask for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Names, shapes and places of the tensors.

        Raises:
            ValueError: The file names something that no metadata of ours has.
        """
        data = (Path(self.path) / _METADATA).read_bytes()
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        # As in the method of PyTorch that this one replaces.
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN_NAMES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise ValueError(f"it names {module}.{name}, which no checkpoint of ours does")


def find_damage(folder: Path, rank: int, world: int) -> str | None:
    """First defect of the files of a checkpoint, or None. Each rank reads its share of them: every `world`-th file."""
    # Files that have a hash and files that should have one: a file or a hash that is missing is a defect, too.
    hashed = {entry.name.removesuffix(_HASH) for entry in folder.glob(f"*{_HASH}")}
    names = sorted({_METADATA} | hashed | {entry.name for entry in folder.glob(f"*{_SUFFIX}")})
    for name in names[rank::world]:
        file = folder / name
        try:
            if hash_file(file) != file.with_name(name + _HASH).read_text(errors="replace").strip():
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{Path(error.filename or file).name}: {error.strerror}"
    return None
