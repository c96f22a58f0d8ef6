"""Listing of a RUN on an object store: which of its folders are whole, and what is in them.

A store has no folders that could be renamed when they are whole. So the files of a folder go up first, and then one
object, `listing.json`, is replaced, by a conditional write: a checkpoint or a model counts from the moment at which it
stands there, with the size and the hash of each of its files, and until the moment at which it does not. It also names
who wrote it last: whoever takes a RUN over writes his name first, and with it ends what the one before may write.

    config.json, metrics.jsonl, index.html, logs/…, validation/…    plain files, each an object that is whole by itself
    pretrained_model/…, weights/step-00001000/…                     folders, in the place where people look for them
    task.<token>/…, checkpoints/step-00001000.<token>/…             other folders; each start writes to names of its own
    listing.json                                                    which folders count
    .lock                                                           the lease
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from talkinghead.config import from_json, shown
from talkinghead.files.foreign import parse_json
from talkinghead.provenance import pretty_json

LISTING = "listing.json"
_FORMAT = 1
_STEP = r"step-\d{8,18}"
_NAME = re.compile(rf"task|pretrained_model|weights/{_STEP}|checkpoints/(?:damaged-)?{_STEP}(?:-\d{{1,7}})?", re.ASCII)
"""Names of folders that are whole or absent."""
_AT = re.compile(rf"(pretrained_model|weights/{_STEP}|(?:task|checkpoints/{_STEP})\.[0-9a-f]{{8}})/(.+)", re.ASCII)
"""Paths of objects that belong to such folders."""
_READABLE = re.compile(rf"pretrained_model|weights/{_STEP}", re.ASCII)
"""Names of folders that people copy from the store: their objects have these names, and no token."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a folder."""

    size: int
    """Size in bytes."""
    sha256: str

    def __post_init__(self) -> None:
        if self.size < 0 or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{shown(self.sha256)} is no hash of a file")


@dataclass(frozen=True, kw_only=True)
class StoredFolder:
    """A folder that is whole."""

    at: str
    """Beginning of the names of its objects, below RUN."""
    files: Mapping[str, FileEntry]
    """Path below the folder → what it was when it was written."""

    def __post_init__(self) -> None:
        for path in self.files:
            if not all(part not in ("", ".", "..") for part in path.split("/")) or not _AT.fullmatch(
                f"{self.at}/{path}"
            ):
                raise ValueError(f"{shown(f'{self.at}/{path}')} is no file of a training")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Content of `listing.json`."""

    writer: str = ""
    """Token of the lease under which it was written."""
    folders: Mapping[str, StoredFolder] = field(default_factory=dict)
    """Name of the folder in RUN → where it is, and what is in it."""

    def to_json(self) -> bytes:
        """Text of the file."""
        folders = {name: asdict(folder) for name, folder in self.folders.items()}
        return pretty_json({"format": _FORMAT, "writer": self.writer, "folders": folders})

    @classmethod
    def from_json(cls, data: bytes) -> Listing:
        """Inverse of `to_json`; raises `ValueError` for anything else."""
        value = parse_json(data, LISTING)
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise ValueError(f"{LISTING} is of another version")
        writer, folders = value.get("writer"), value.get("folders")
        if not isinstance(writer, str) or not isinstance(folders, dict):
            raise ValueError(f"{LISTING} is none of ours")
        if wrong := [name for name in folders if not _NAME.fullmatch(name)]:
            raise ValueError(f"{LISTING} names {shown(wrong[0])}, which no training makes")
        return cls(writer=writer, folders={name: _folder(value) for name, value in folders.items()})

    def with_folder(self, name: str, folder: StoredFolder) -> Listing:
        """The listing with one folder more."""
        assert _NAME.fullmatch(name), name
        return replace(self, folders={**self.folders, name: folder})

    def without(self, name: str) -> Listing:
        """The listing without a folder."""
        return replace(self, folders={other: folder for other, folder in self.folders.items() if other != name})

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        names = (re.fullmatch(r"checkpoints/step-(\d+)", name, re.ASCII) for name in self.folders)
        return sorted(int(name[1]) for name in names if name)


def is_whole(name: str) -> bool:
    """Whether a folder of RUN is one that is whole or absent."""
    return _NAME.fullmatch(name) is not None


def place_for(name: str, token: str) -> str:
    """Beginning of the names of the objects of a folder.

    Args:
        name: Name of the folder in RUN.
        token: Eight hexadecimal digits of the start that writes them.
    """
    return name if _READABLE.fullmatch(name) else f"{name}.{token}"


def place_of(path: str) -> str | None:
    """Beginning of the name of an object that belongs to a folder; None for a plain file."""
    found = _AT.fullmatch(path)
    return found[1] if found else None


def _folder(value: Any) -> StoredFolder:
    if not isinstance(value, dict) or not isinstance(value.get("at"), str) or not isinstance(value.get("files"), dict):
        raise ValueError(f"{LISTING} has {shown(value)} where a folder belongs")
    return StoredFolder(
        at=value["at"], files={path: from_json(FileEntry, entry) for path, entry in value["files"].items()}
    )
