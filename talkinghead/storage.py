"""Files under one root, local or any `pyarrow.fs` URI (s3://, gs://, …), with whole-or-nothing writes.

Every write goes to a temporary name first, is flushed to the disk and then renamed, so a reader sees the old file or
the new one, never a part. An object store gives the same: an object appears when its upload is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

TEMPORARY_FOLDER = "tmp"


@dataclass(frozen=True)
class StoredFile:
    """One file in a listing: path relative to the root, and its size in bytes."""

    path: str
    size: int


class Storage:
    """Files under `uri`, addressed by relative paths with forward slashes. Pickles as its URI."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        is_uri = "://" in self.uri
        self.local_root: Path | None = None if is_uri else Path(self.uri).absolute()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.uri,))

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    @cached_property
    def _remote(self) -> tuple[pafs.FileSystem, str]:
        try:
            return pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"cannot open {self.uri}: {error}") from error

    def _local(self, path: str) -> Path:
        assert self.local_root is not None
        self._check(path)
        return self.local_root / path

    def _key(self, path: str) -> str:
        self._check(path)
        return f"{self._remote[1].rstrip('/')}/{path}"

    @staticmethod
    def _check(path: str) -> None:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError(f"path {path!r} leaves the data folder")

    def describe(self, path: str) -> str:
        """The full name of a file, for messages."""
        return str(self._local(path)) if self.local_root else f"{self.uri.rstrip('/')}/{path}"

    def read(self, path: str) -> bytes:
        """Whole content. Raises `FileNotFoundError`."""
        if self.local_root:
            return self._local(path).read_bytes()
        with self._remote[0].open_input_file(self._key(path)) as stream:
            return stream.read()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; raises `EOFError` when the file is shorter."""
        if self.local_root:
            with self._local(path).open("rb") as stream:
                data = os.pread(stream.fileno(), length, offset)
        else:
            with self._remote[0].open_input_file(self._key(path)) as stream:
                data = stream.read_at(length, offset)
        if len(data) != length:
            raise EOFError(f"{self.describe(path)} is shorter than its index says ({offset} + {length} bytes)")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Replace a file as a whole."""
        if self.local_root is None:
            self._upload(path, data)
            return
        temporary = self._temporary()
        try:
            _write_synced(temporary, data)
            self._commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only if it is not there; False when it was. Two writers cannot both succeed on a local disk.

        Object stores reached through pyarrow have no conditional write: there a lost race replaces a record by its
        equal, since what is written is a function of its name.
        """
        if self.local_root is None:
            if self.exists(path):
                return False
            self._upload(path, data)
            return True
        temporary = self._temporary()
        target = self._local(path)
        try:
            _write_synced(temporary, data)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    @contextlib.contextmanager
    def staged(self, path: str) -> Iterator[Path]:
        """A local scratch path whose file becomes `path` when the block ends without an error; else it is gone."""
        if self.local_root is None:
            with tempfile.TemporaryDirectory(prefix="talkinghead-") as folder:
                scratch = Path(folder) / "file"
                yield scratch
                self._upload_file(path, scratch)
            return
        temporary = self._temporary()
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            self._commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """The file as a local path: itself when it is local, a temporary download otherwise."""
        if self.local_root:
            yield self._local(path)
            return
        with tempfile.TemporaryDirectory(prefix="talkinghead-") as folder:
            target = Path(folder) / PurePosixPath(path).name
            with self._remote[0].open_input_stream(self._key(path)) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)
            yield target

    def exists(self, path: str) -> bool:
        """Whether a file stands at `path`."""
        if self.local_root:
            return self._local(path).is_file()
        return self._remote[0].get_file_info(self._key(path)).type == pafs.FileType.File

    def size(self, path: str) -> int | None:
        """Size in bytes, None when there is no such file."""
        if self.local_root:
            try:
                return self._local(path).stat().st_size
            except FileNotFoundError:
                return None
        info = self._remote[0].get_file_info(self._key(path))
        return info.size if info.type == pafs.FileType.File else None

    def list(self, folder: str, suffix: str = "") -> list[StoredFile]:
        """All files below `folder`, sorted by path; empty when the folder does not exist."""
        self._check(folder)
        found: list[StoredFile] = []
        if self.local_root:
            for parent, _, names in os.walk(self.local_root / folder):
                for name in names:
                    if name.endswith(suffix):
                        full = Path(parent) / name
                        relative = full.relative_to(self.local_root).as_posix()
                        with contextlib.suppress(FileNotFoundError):
                            found.append(StoredFile(relative, full.stat().st_size))
        else:
            base = self._remote[1].rstrip("/") + "/"
            selector = pafs.FileSelector(base + folder, recursive=True, allow_not_found=True)
            for info in self._remote[0].get_file_info(selector):
                if info.type == pafs.FileType.File and info.path.endswith(suffix):
                    found.append(StoredFile(info.path.removeprefix(base), info.size))
        return sorted(found, key=lambda file: file.path)

    def delete(self, path: str) -> None:
        """Remove a file; no error when it is gone already."""
        if self.local_root:
            self._local(path).unlink(missing_ok=True)
        elif self.exists(path):
            self._remote[0].delete_file(self._key(path))

    def sweep_temporary(self) -> int:
        """Delete what killed writers left under temporary names. Only when no writer runs. Returns the count."""
        leftovers = self.list(TEMPORARY_FOLDER)
        for file in leftovers:
            self.delete(file.path)
        return len(leftovers)

    def check_writable(self) -> None:
        """Raise one clear `OSError` when nothing can be written under the root."""
        probe = f"{TEMPORARY_FOLDER}/probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"talkinghead")
            self.delete(probe)
        except OSError as error:
            raise OSError(f"cannot write to {self.uri}: {error.strerror or error}") from error

    def _temporary(self) -> Path:
        assert self.local_root is not None
        folder = self.local_root / TEMPORARY_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def _commit(self, temporary: Path, path: str) -> None:
        target = self._local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        _sync_folder(target.parent)

    def _upload(self, path: str, data: bytes) -> None:
        with self._remote[0].open_output_stream(self._key(path)) as stream:
            stream.write(data)

    def _upload_file(self, path: str, source: Path) -> None:
        with source.open("rb") as reader, self._remote[0].open_output_stream(self._key(path)) as stream:
            shutil.copyfileobj(reader, stream, 1 << 22)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
