"""Files under one root, local or any `pyarrow.fs` URI (s3://, gs://, …), with whole-or-nothing writes.

Every write goes to a temporary name first, is flushed to the disk and then renamed, so a reader gets the old file or
the new one, never a part. An object store behaves alike: an object appears when its upload is complete.
"""

from __future__ import annotations

import contextlib
import mmap
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

from talkinghead.files.atomic import sync, write_synced
from talkinghead.files.uri import hide_secrets, with_whole_writes, without_credentials
from talkinghead.runtime.errors import UnreachableError, naming

TEMPORARY_FOLDER = "tmp"
"""Folder under the root for files that are being written."""


@dataclass(frozen=True)
class StoredFile:
    """One file in a listing."""

    path: str
    """Path relative to the root, with forward slashes."""
    size: int
    """Size in bytes."""


class Storage:
    """Files under one root, addressed by relative paths with forward slashes. Pickles as its location.

    Args:
        location: A folder, or a URI, which may hold credentials: `s3://key:secret@bucket/folder?region=…`.

    Attributes:
        location: Absolute path, or the URI as given. Only for opening the same place again; it may hold credentials.
        uri: The location with credentials hidden, for messages and pages.
        local_root: The folder; None for a URI.
    """

    def __init__(self, location: str | Path) -> None:
        given = str(location)
        self.local_root: Path | None = None if "://" in given else Path(given).absolute()
        # A worker elsewhere has another working folder: a relative path would mean another place there.
        self.location = str(self.local_root) if self.local_root else given
        self.uri = given if self.local_root else without_credentials(given)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.location,))

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    # Opened at the first use and not pickled: each process has a connection of its own.
    @cached_property
    def _remote(self) -> tuple[pafs.FileSystem, str]:
        """The file system of a URI, and the root's path in it."""
        try:
            return pafs.FileSystem.from_uri(with_whole_writes(self.location))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            # The message and the chained error would show the URI with its credentials.
            raise ValueError(f"cannot open {self.uri}: {hide_secrets(str(error), self.location)}") from None

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[pafs.FileSystem]:
        """The remote file system; its errors become `UnreachableError`, except for a missing file.

        Errors with a number are the operating system's, about local files, and pass through.
        """
        filesystem = self._remote[0]
        try:
            yield filesystem
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError)):
                raise
            raise UnreachableError(f"cannot reach {self.uri}: {hide_secrets(str(error), self.location)}") from None

    def _local(self, path: str) -> Path:
        """Full path of a file under a local root."""
        assert self.local_root is not None
        self._check(path)
        return self.local_root / path

    def _key(self, path: str) -> str:
        """Path of a file in the remote file system."""
        self._check(path)
        return f"{self._remote[1].rstrip('/')}/{path}"

    @staticmethod
    def _check(path: str) -> None:
        """Raise `ValueError` for a path that is empty, absolute or leads above the root."""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError(f"path {path!r} leaves the data folder")

    def describe(self, path: str) -> str:
        """Full name of a file, for messages."""
        if self.local_root:
            return str(self._local(path))
        # Options of the URI stay at its end.
        root, question, options = self.uri.partition("?")
        return f"{root.rstrip('/')}/{path}{question}{options}"

    def read(self, path: str) -> bytes:
        """Whole content of a file. Raises `FileNotFoundError`."""
        if self.local_root:
            with naming(self._local(path)):
                return self._local(path).read_bytes()
        with self._reaching() as remote, remote.open_input_file(self._key(path)) as stream:
            return stream.read()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Bytes `offset .. offset + length - 1` of a file; raises `EOFError` when the file is shorter."""
        if self.local_root:
            with naming(self._local(path)), self._local(path).open("rb") as stream:
                data = os.pread(stream.fileno(), length, offset)
        else:
            with self._reaching() as remote, remote.open_input_file(self._key(path)) as stream:
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
            write_synced(temporary, data)
            self._commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only if it is not there. Of two writers on a local disk, only one succeeds.

        Object stores reached through pyarrow have no conditional write: there, the loser of a race replaces a file by
        an equal one, since callers write content that its name determines.

        Returns:
            False when the file was there already.
        """
        if self.local_root is None:
            if self.exists(path):
                return False
            self._upload(path, data)
            return True
        temporary = self._temporary()
        target = self._local(path)
        try:
            write_synced(temporary, data)
            target.parent.mkdir(parents=True, exist_ok=True)
            # A hard link, unlike a rename, fails where the name is taken.
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        sync(target.parent)
        return True

    @contextlib.contextmanager
    def staged(self, path: str) -> Iterator[Path]:
        """A local scratch path whose file becomes `path` when the block ends without an error, else is removed."""
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
        """Local path of a file's content: the file itself, or a download that is removed when the block ends."""
        if self.local_root:
            yield self._local(path)
            return
        with tempfile.TemporaryDirectory(prefix="talkinghead-") as folder:
            target = Path(folder) / PurePosixPath(path).name
            key = self._key(path)
            with self._reaching() as remote, remote.open_input_stream(key) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)
            yield target

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path` (a folder does not count)."""
        if self.local_root:
            return self._local(path).is_file()
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Size in bytes; None when there is no such file."""
        if self.local_root:
            try:
                return self._local(path).stat().st_size
            except FileNotFoundError:
                return None
        with self._reaching() as remote:
            info = remote.get_file_info(self._key(path))
        return info.size if info.type == pafs.FileType.File else None

    def list(self, folder: str, suffix: str = "") -> list[StoredFile]:
        """All files below `folder` whose names end in `suffix`, sorted by path; empty without such a folder."""
        self._check(folder)
        found: list[StoredFile] = []
        if self.local_root:
            for parent, _, names in os.walk(self.local_root / folder):
                for name in names:
                    if name.endswith(suffix):
                        full = Path(parent) / name
                        relative = full.relative_to(self.local_root).as_posix()
                        # Another process may delete a file between the listing and this line.
                        with contextlib.suppress(FileNotFoundError):
                            found.append(StoredFile(relative, full.stat().st_size))
        else:
            base = self._remote[1].rstrip("/") + "/"
            selector = pafs.FileSelector(base + folder, recursive=True, allow_not_found=True)
            with self._reaching() as remote:
                infos = remote.get_file_info(selector)
            for info in infos:
                if info.type == pafs.FileType.File and info.path.endswith(suffix):
                    found.append(StoredFile(info.path.removeprefix(base), info.size))
        return sorted(found, key=lambda file: file.path)

    def delete(self, path: str) -> None:
        """Remove a file; no error when it is gone already."""
        if self.local_root:
            self._local(path).unlink(missing_ok=True)
        else:
            with contextlib.suppress(FileNotFoundError), self._reaching() as remote:
                remote.delete_file(self._key(path))

    def sweep_temporary(self) -> int:
        """Delete the temporary files of killed writers; returns how many. Call it while there is no writer."""
        leftovers = self.list(TEMPORARY_FOLDER)
        for file in leftovers:
            self.delete(file.path)
        return len(leftovers)

    def check_writable(self) -> None:
        """Raise one clear `OSError` when files cannot be written under the root."""
        probe = f"{TEMPORARY_FOLDER}/probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"talkinghead")
            self.delete(probe)
        except UnreachableError:
            raise
        except OSError as error:
            raise OSError(error.errno, f"cannot write to {self.uri}: {error.strerror or error}") from error

    def _temporary(self) -> Path:
        """A new temporary name under a local root, so on the file system of the final names."""
        assert self.local_root is not None
        folder = self.local_root / TEMPORARY_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def _commit(self, temporary: Path, path: str) -> None:
        """Rename a finished temporary file to its final name."""
        target = self._local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        sync(target.parent)

    def _upload(self, path: str, data: bytes | mmap.mmap) -> None:
        """Make an object from data that is complete in memory.

        Closing a stream, even after an error, makes an object of what was written until then, and pyarrow cannot abort
        one. So no code of ours may fail between opening and closing: there is one write, which fails as a whole.
        """
        with self._reaching() as remote, remote.open_output_stream(self._key(path)) as stream:
            stream.write(data)

    def _upload_file(self, path: str, source: Path) -> None:
        """Make an object from a local file, mapped into memory rather than read."""
        if not source.stat().st_size:  # an empty file cannot be mapped
            self._upload(path, b"")
            return
        with source.open("rb") as reader, mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._upload(path, data)
