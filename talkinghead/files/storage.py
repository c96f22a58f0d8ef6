"""Files under one root, local or any `pyarrow.fs` URI (s3://, gs://, …), with whole-or-nothing writes.

Every write goes to a temporary name first, is flushed to the disk and then renamed, so a reader gets the old file or
the new one, never a part. An object store behaves alike: an object appears when its upload is complete.

A local root may be a stranger's: reading follows links, but takes regular files only, and never waits for a pipe;
writing and removing go through no link (see `guarded_folder`), but for folders that the user names.

A store that is overloaded or cannot be reached for a while is asked again (`talkinghead.files.patience`); whoever reads
and writes here notices nothing but the time that it takes.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from talkinghead.dataroot import FOLDERS, TEMPORARY_FOLDER
from talkinghead.files.foreign import entries_below, open_regular, read_limited, refuse_large
from talkinghead.files.guarded_folder import GuardedFolder, NewFile
from talkinghead.files.lease import Lease, refuse_stale
from talkinghead.files.patience import Tries, read_locally, store_patience
from talkinghead.files.remote import open_remote, passes, unanswered
from talkinghead.files.s3_files import RefusedError, S3Files, boto_speaks_to
from talkinghead.files.uri import hide_secrets, without_credentials
from talkinghead.runtime.errors import UnreachableError

LINKED_FOLDERS = "TALKINGHEAD_LINKED_FOLDERS"
"""Environment variable: folders directly in DATA, with commas between them, that may be links to folders elsewhere, on
another disk for example. Files are then written, and those of our own removed, where the link leads."""

_TEMPORARY_NAME = re.compile(r"(probe-)?[0-9a-f]{32}")
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_STRANGER_S = 10.0
"""Seconds of patience with a place that never answered: it may be a wrong address."""

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """One file in a listing."""

    path: str
    """Path relative to the root, with forward slashes."""
    size: int
    """Size in bytes."""
    modified_s: float | None = field(default=None, compare=False)
    """Time of its last change by the clock of the place, seconds since 1970; None where the listing has none."""


class Storage:
    """Files under one root, addressed by relative paths with forward slashes. Pickles as its location.

    Args:
        location: A folder, or a URI, which may hold credentials: `s3://key:secret@bucket/folder?region=…`.
        linked: Folders directly in a local root that may be links; None: those that `LINKED_FOLDERS` names.

    Attributes:
        location: Absolute path, or the URI as given. Only for opening the same place again; it may hold credentials.
        uri: The location with credentials hidden, for messages and pages.
        local_root: The folder; None for a URI.
        linked: Folders directly in a local root that may be links.
        epoch: Epoch of the lease under which this process, or the one that it works for, writes: each write asks
            whether it is over (`talkinghead.files.lease`). None: no lease is asked for. It is pickled, too.

    Raises:
        ValueError: `LINKED_FOLDERS` names something else than folders of DATA.
    """

    def __init__(self, location: str | Path, linked: Collection[str] | None = None) -> None:
        given = str(location)
        self.local_root: Path | None = None if "://" in given else Path(given).absolute()
        # A worker elsewhere has another working folder: a relative path would mean another place there.
        self.location = str(self.local_root) if self.local_root else given
        self.uri = given if self.local_root else without_credentials(given)
        # Kept and pickled, so that a worker on another node, which has another environment, writes alike.
        self.linked = tuple(sorted(_linked_folders() if linked is None else linked))
        self.epoch: int | None = None
        self._answered = False  # whether the store has ever answered, which makes silence an outage

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.location, self.linked), {"epoch": self.epoch, "_answered": self._answered})

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    # Opened at the first use and not pickled: each process has a connection of its own.
    @cached_property
    def _remote(self) -> tuple[pafs.FileSystem, str]:
        """The file system of a URI, and the root's path in it."""
        try:
            return self._patiently(lambda: open_remote(self.location), Tries(self.uri))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            # The message and the chained error would show the URI with its credentials.
            raise ValueError(f"cannot open {self.uri}: {hide_secrets(str(error), self.location)}") from None

    @cached_property
    def _s3(self) -> S3Files | None:
        """Files of a URI, for conditional writes, and ranges by a single request; None where boto3 cannot read it."""
        return S3Files(self.location) if boto_speaks_to(self.location) else None

    @cached_property
    def _folder(self) -> GuardedFolder:
        """The local root, for writing and removing."""
        assert self.local_root is not None
        advice = f"; or, if it is a link of yours and not {TEMPORARY_FOLDER}, name it in {LINKED_FOLDERS}"
        return GuardedFolder(self.local_root, self.linked, advice)

    def _ask(self, request: Callable[[pafs.FileSystem], T]) -> T:
        """Result of a request to the remote file system, which may be made several times.

        Its errors become `UnreachableError`, except for a missing file. Errors with a number are the operating
        system's, about local files, and pass through.
        """
        filesystem = self._remote[0]
        tries = Tries(self.uri)
        try:
            result = self._patiently(lambda: request(filesystem), tries)
        except (OSError, pa.ArrowInvalid) as error:
            if _own_error(error):
                raise
            text = hide_secrets(str(error), self.location)
            raise UnreachableError(f"cannot reach {self.uri}: {text}{tries.summary}") from None
        self._answered = True
        return result

    def _patiently(self, request: Callable[[], T], tries: Tries) -> T:
        """Result of a request, made again for as long as its errors may pass."""
        while True:
            try:
                result = request()
            except (OSError, pa.ArrowInvalid) as error:
                self._answered = self._answered or not unanswered(error)
                patience = store_patience() if passes(error) and not _own_error(error) else 0.0
                if not self._answered:
                    patience = min(patience, _STRANGER_S)
                if not tries.again(patience, hide_secrets(str(error), self.location)):
                    raise
            else:
                tries.succeeded()
                return result

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Context in which this process alone may write under the root, by a lease.

        Whatever this storage and its pickled copies write then is refused once another process has taken over.

        Raises:
            LockedError: Another process holds it, and lives.
            RefusedError: The store has no conditional writes.
            ValueError: A file that is no lease lies in its place.
            OSError: Nothing can be written.
        """
        if self.local_root is None:
            self.check_writable()  # before the lease, which stands on what is tried here
        lease = Lease(Storage(self.location, self.linked))
        with self._naming_root():
            lease.take()
        self.epoch = lease.epoch
        try:
            yield
        finally:
            self.epoch = None
            lease.release()

    @contextlib.contextmanager
    def _naming_root(self) -> Iterator[None]:
        """Say in errors of the operating system that this place cannot be written."""
        try:
            yield
        except UnreachableError:
            raise
        except OSError as error:
            raise OSError(error.errno, f"cannot write to {self.uri}: {error.strerror or error}") from error

    def _refuse_stale(self) -> None:
        """Raise `LeaseLostError` where this writes under an epoch that is over."""
        if self.epoch is not None:
            refuse_stale(self, self.epoch)

    @property
    def _conditional(self) -> S3Files:
        """Files of a URI for conditional writes; raises `RefusedError` where there are none."""
        if self._s3 is None:
            needed = "pip install 'talkinghead[s3]'" if self.location.startswith("s3://") else "take s3://… or a folder"
            raise RefusedError(
                f"{self.uri} can be read here, but not written by jobs: conditional writes, by which writers keep out"
                f" of each other's way, need boto3 and a store of S3's protocol: {needed}"
            )
        return self._s3

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
        parts = path.split("/")
        if path.startswith("/") or ".." in parts or all(part in ("", ".") for part in parts):
            raise ValueError(f"path {path!r} leaves the data folder")

    def describe(self, path: str) -> str:
        """Full name of a file, for messages."""
        if self.local_root:
            self._check(path)
            return os.path.join(self.location, path)  # noqa: PTH118  for every record: Path would cost more than reading
        # Options of the URI stay at its end.
        root, question, options = self.uri.partition("?")
        return f"{root.rstrip('/')}/{path}{question}{options}"

    def read(self, path: str, limit: int | None = None, what: str = "file") -> bytes:
        """Whole content of a file.

        Args:
            path: Path of the file.
            limit: Bytes that it may have at most; None: any number.
            what: What it should be, for the message.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is larger, or no regular file.
        """
        if self.local_root:
            file = self._local(path)
            return read_locally(file, lambda: _content(file, limit, what))
        key = self._key(path)

        def request(remote: pafs.FileSystem) -> bytes:
            with remote.open_input_file(key) as stream:
                if limit is not None:
                    refuse_large(self.describe(path), stream.size(), limit, what)
                return stream.read()

        return self._ask(request)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Bytes `offset .. offset + length - 1` of a file.

        Of S3 it is one request where boto3 is installed (the extra `s3`); pyarrow asks for the size before each.

        Raises:
            EOFError: The file does not have them all.
            FileNotFoundError: There is no such file.
            ValueError: It is no regular file.
        """
        if self.local_root:
            file = self._local(path)
            data = read_locally(file, lambda: _range(file, offset, length))
        elif self._s3 is not None and offset >= 0 and length > 0:
            self._check(path)
            data = self._s3.read_range(path, offset, length)
        else:
            key = self._key(path)

            def request(remote: pafs.FileSystem) -> bytes | None:
                with remote.open_input_file(key) as stream:
                    # The size first: a record of a stranger's may ask for more bytes than the memory has.
                    there = 0 <= offset <= offset + length <= stream.size()
                    return stream.read_at(length, offset) if there else None

            data = self._ask(request)
        if data is None or len(data) != length:
            raise EOFError(f"{self.describe(path)} is shorter than its index says ({offset} + {length} bytes)")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Replace a file as a whole.

        Raises:
            LinkError: A folder of the path is a link. A file that is one is replaced.
            LeaseLostError: The epoch is over.
        """
        if self.local_root is None:
            self._upload(path, data)
            return
        self._check(path)
        with self._folder.new_file(self._temporary(path)) as file:
            file.write(data)
            self._commit(file, path)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only if it is not there. Of any number of writers, on any machines, one succeeds.

        On a disk a hard link does it, on S3 a conditional write of boto3 (the extra `s3`), which pyarrow has not.

        Returns:
            False when the file was there already.

        Raises:
            LinkError: A folder of the path is a link.
            LeaseLostError: The epoch is over.
            RefusedError: The store has no conditional writes, or boto3 is not installed.
        """
        self._check(path)
        self._refuse_stale()
        if self.local_root is None:
            return self._conditional.create(path, data) is not None
        with self._folder.new_file(self._temporary(path)) as file:
            file.write(data)
            return file.take(path)

    @contextlib.contextmanager
    def staged(self, path: str, *, new: bool = False) -> Iterator[Path]:
        """A local scratch file, which becomes `path` when the block ends without an error, and else is removed.

        The block has to write into the file that is there, not put another in its place.

        Args:
            path: Path of the file.
            new: Whether it is made only where there is none, as `create` does it; else it replaces what is there.

        Raises:
            FileExistsError: It is to be new, and is there.
            LinkError: A folder of the path is a link.
            LeaseLostError: The epoch is over.
            RefusedError: It is to be new, and the store has no conditional writes.
        """
        if self.local_root is None:
            # Without a name, so that a killed writer leaves nothing on this machine.
            with tempfile.TemporaryFile() as file:
                scratch = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
                yield scratch
                if not new:
                    self._upload_file(path, scratch)
                else:
                    self._check(path)
                    self._refuse_stale()
                    if not self._conditional.create_from(path, scratch):
                        raise FileExistsError(errno.EEXIST, "there already", self.describe(path))
            return
        self._check(path)
        self.check_links(*map(str, PurePosixPath(path).parents[:-1]))
        with self._folder.new_file(self._temporary(path)) as file:
            # Not by its name, in whose place somebody may put a link until the block opens it.
            yield Path(f"/proc/{os.getpid()}/fd/{file.descriptor}")
            os.fsync(file.descriptor)
            (self._commit_new if new else self._commit)(file, path)

    @contextlib.contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """Local path of a file's content: the file itself, or a download that is removed when the block ends.

        Raises:
            ValueError: It is no regular file.
        """
        if self.local_root:
            open_regular(self._local(path)).close()
            yield self._local(path)
            return
        with tempfile.TemporaryDirectory(prefix="talkinghead-") as folder:
            target = Path(folder) / PurePosixPath(path).name
            key = self._key(path)

            def request(remote: pafs.FileSystem) -> None:
                with remote.open_input_stream(key) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 22)

            self._ask(request)
            yield target

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path` (a folder, a pipe or a device does not count)."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Size in bytes; None when there is no such file."""
        if self.local_root:
            return _file_size(self._local(path))
        key = self._key(path)
        info = self._ask(lambda remote: remote.get_file_info(key))
        return info.size if info.type == pafs.FileType.File else None

    def list(self, folder: str, suffix: str = "") -> list[StoredFile]:
        """All files below `folder` whose names end in `suffix`, sorted by path; empty without such a folder."""
        self._check(folder)
        found: list[StoredFile] = []
        if self.local_root:
            if not (self.local_root / folder).is_dir():
                return []
            start = len(os.path.join(self.location, ""))  # noqa: PTH118  no Path for every record
            for entry in entries_below(self.local_root / folder):
                # Another process may have deleted it since the listing.
                if entry.name.endswith(suffix) and (info := _regular_file(entry)) is not None:
                    found.append(StoredFile(entry.path[start:], info.st_size, info.st_mtime))
        else:
            base = self._remote[1].rstrip("/") + "/"
            selector = pafs.FileSelector(base + folder, recursive=True, allow_not_found=True)
            for info in self._ask(lambda remote: remote.get_file_info(selector)):
                if info.type == pafs.FileType.File and info.path.endswith(suffix):
                    changed = info.mtime and info.mtime.timestamp()
                    found.append(StoredFile(info.path.removeprefix(base), info.size, changed))
        return sorted(found, key=lambda file: file.path)

    def names(self) -> list[str]:
        """Names of what lies directly under the root of a URI, files and folders, sorted; empty without a root."""
        base = self._remote[1].rstrip("/")
        infos = self._ask(lambda remote: remote.get_file_info(pafs.FileSelector(base, allow_not_found=True)))
        return sorted(info.base_name for info in infos)

    def delete(self, path: str) -> None:
        """Remove a file; no error when it is gone already.

        Raises:
            LinkError: A folder of the path is a link. Of a file that is one, the link is removed.
            LeaseLostError: The epoch is over.
        """
        self._refuse_stale()
        if self.local_root:
            self._check(path)
            self._folder.remove(path)
        else:
            key = self._key(path)
            with contextlib.suppress(FileNotFoundError):
                self._ask(lambda remote: remote.delete_file(key))

    def check_links(self, *folders: str) -> None:
        """Check folders before the work whose results go there.

        Raises:
            LinkError: One of them is a link, or is reached through one.
        """
        for folder in folders if self.local_root else ():
            self._check(folder)
            with contextlib.suppress(FileNotFoundError), self._folder.opened(folder):
                pass

    def sweep_temporary(self) -> int:
        """Delete the temporary files of killed writers; returns how many. Call it while there is no writer.

        Whatever else lies there stays: it is not ours.

        Raises:
            LinkError: The folder of temporary files is a link.
        """
        if self.local_root is None:
            leftovers = [file.path for file in self.list(TEMPORARY_FOLDER)]
        else:
            folders = (TEMPORARY_FOLDER, *(f"{folder}/{TEMPORARY_FOLDER}" for folder in self.linked))
            leftovers = [f"{folder}/{name}" for folder in folders for name in self._folder.file_names(folder)]
        leftovers = [path for path in leftovers if _TEMPORARY_NAME.fullmatch(path.rsplit("/", 1)[1])]
        for path in leftovers:
            self.delete(path)
        return len(leftovers)

    def check_writable(self) -> None:
        """Raise one clear error when files cannot be written under the root, or not such that one of two writers wins.

        Raises:
            RefusedError: The store has no conditional writes.
            OSError: Nothing can be written, or the disk has no hard links.
        """
        probe = f"{TEMPORARY_FOLDER}/probe-{uuid.uuid4().hex}"
        with self._naming_root():
            if self.local_root is not None:
                self.create(probe, b"talkinghead")
            else:
                self.write(probe, b"talkinghead")
            self.delete(probe)
            if self.local_root is None:
                self._conditional.check()

    def _temporary(self, path: str) -> str:
        """Folder under a local root for a file that is being written, on the file system of its final name."""
        first = PurePosixPath(path).parts[0]
        # A rename does not lead from one disk to another.
        return f"{first}/{TEMPORARY_FOLDER}" if first in self.linked else TEMPORARY_FOLDER

    def _commit(self, file: NewFile, path: str) -> None:
        """Give a finished file its final name, whatever had it."""
        self._refuse_stale()
        file.replace(path)

    def _commit_new(self, file: NewFile, path: str) -> None:
        """Give a finished file its final name; raises `FileExistsError` where another has it."""
        self._refuse_stale()
        if not file.take(path):
            raise FileExistsError(errno.EEXIST, "there already", self.describe(path))

    def _upload(self, path: str, data: bytes | mmap.mmap) -> None:
        """Make an object from data that is complete in memory.

        Closing a stream, even after an error, makes an object of what was written until then, and pyarrow cannot abort
        one. So no code of ours may fail between opening and closing: there is one write, which fails as a whole.
        """
        key = self._key(path)
        self._refuse_stale()

        def request(remote: pafs.FileSystem) -> None:
            with remote.open_output_stream(key) as stream:
                stream.write(data)

        self._ask(request)

    def _upload_file(self, path: str, source: Path) -> None:
        """Make an object from a local file, mapped into memory rather than read."""
        if not source.stat().st_size:  # an empty file cannot be mapped
            self._upload(path, b"")
            return
        with source.open("rb") as reader, mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._upload(path, data)


def _own_error(error: BaseException) -> bool:
    """Whether an error of a request is about a missing file, or the operating system's about a local one."""
    return isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError))


def _content(file: Path, limit: int | None, what: str) -> bytes:
    """Content of a local file."""
    if limit is not None:
        return read_limited(file, limit, what)
    with open_regular(file) as stream:
        return stream.read()


def _range(file: Path, offset: int, length: int) -> bytes | None:
    """Range of a local file; None where the file does not have it."""
    with open_regular(file) as stream:
        there = 0 <= offset <= offset + length <= os.fstat(stream.fileno()).st_size
        return os.pread(stream.fileno(), length, offset) if there else None


def _linked_folders() -> Collection[str]:
    """Folders that the environment names as links."""
    names = {name.strip() for name in os.environ.get(LINKED_FOLDERS, "").split(",")} - {""}
    if wrong := sorted(names - FOLDERS):
        raise ValueError(f"{LINKED_FOLDERS} names {wrong[0]!r}; it may name {', '.join(sorted(FOLDERS))}")
    return names


def _file_size(path: Path | os.DirEntry[str]) -> int | None:
    """Size of a regular file, or of one that a link leads to; None when there is none."""
    info = _regular_file(path)
    return None if info is None else info.st_size


def _regular_file(path: Path | os.DirEntry[str]) -> os.stat_result | None:
    """What the system knows of a regular file, or of one that a link leads to; None when there is none."""
    try:
        info = path.stat()
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    return info if stat.S_ISREG(info.st_mode) else None
