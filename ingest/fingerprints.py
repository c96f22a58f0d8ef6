"""Fingerprints of the files in SOURCE: what ingest puts into its provenance keys.

A file is hashed once; later jobs hash it again only when its size or time changed (or when asked to). A file that
cannot or must not be read has an entry with the error, so that its units are quarantined with that cause. Next to the
hash stands how long the source is and how large its frames are, which bounds the time of its units; a file whose
entry lacks that, as in tables of older releases, is looked at without being hashed again.
"""

from __future__ import annotations

import io
import itertools
import logging
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.extent import Extent, ExtentReader
from ingest.source_files import FOLDER_FILES, SOURCE_BYTES, is_inside, leads_out, locate
from ingest.source_listing import display_path, from_stored, shortened, to_stored
from talkinghead import dataroot
from talkinghead.files.foreign import open_regular
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json, hash_bytes, hash_stream
from talkinghead.runtime.errors import is_machine_error
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.tables import read_table

log = logging.getLogger(__name__)

_TABLE_BYTES = 1 << 30
_SLOW = 16 << 30  # bytes of a file whose hash takes minutes

_CONTENT = [
    pa.field("path", pa.string(), nullable=False),
    ("size", pa.int64()),  # bytes
    ("mtime_ns", pa.int64()),
    ("listing", pa.string()),
    ("sha256", pa.string()),
    ("error", pa.string()),
]
_EXTENT = [("seconds", pa.float64()), ("frames", pa.int64()), ("width", pa.int64()), ("height", pa.int64())]
SOURCES_SCHEMA = pa.schema([*_CONTENT, *_EXTENT])
_OLD_SCHEMA = pa.schema(_CONTENT)  # of tables from before extents


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Content hash of one source, with the size and times by which a change is noticed."""

    path: str
    """Path relative to SOURCE."""
    size: int | None
    """Size in bytes; for a folder, the sum over its files."""
    mtime_ns: int | None
    """Time of the last change in nanoseconds; for a folder, that of its newest file."""
    listing: str | None = None
    """Hash of the names, sizes and times of a folder's files; None for a file."""
    sha256: str | None
    """Hash of the content; for a folder, over the sorted (name, sha256) of its files. None when unreadable."""
    error: str | None = None
    """Reason why it could not be read; None when it could."""
    extent: Extent | None = None
    """Length and frame size; None when it was not looked at."""

    def __post_init__(self) -> None:
        if (self.sha256 is None) == (self.error is None):
            raise ValueError(f"{display_path(self.path)} has neither a hash nor an error, or both")

    def same_stat(self, other: Fingerprint) -> bool:
        """Whether size and times are those of `other`."""
        mine, theirs = (self.size, self.mtime_ns, self.listing), (other.size, other.mtime_ns, other.listing)
        return mine == theirs


def fingerprint(
    source: Path,
    paths: Iterable[str],
    known: Mapping[str, Fingerprint] | None = None,
    *,
    rehash: bool = False,
    threads: int = 2,
    follow_links: bool = False,
    on_hashed: Callable[[Fingerprint], None] | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Fingerprint]:
    """Fingerprint files (or folders of frames) below SOURCE.

    Args:
        source: Folder SOURCE.
        paths: Paths relative to SOURCE, as in the catalog.
        known: Fingerprints of an earlier job, taken over where size and time are the same.
        rehash: Whether to hash everything again.
        threads: Number of files that are read at once.
        follow_links: Whether links may lead out of SOURCE.
        on_hashed: Called in the caller's thread for each file that was hashed (not for those taken over).
        on_progress: Called in the caller's thread after each file, with the MiB that are hashed and their total.

    Returns:
        Path → fingerprint, sorted by path.
    """
    known = {} if rehash or known is None else known
    wanted = sorted(set(paths))
    reader = _Reader(source, follow_links)
    result: dict[str, Fingerprint] = {}
    # Hashing reads and releases the interpreter lock, so threads are enough; `map` keeps the sorted order.
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="fingerprint") as pool:
        # What is taken over, and how much there is to hash.
        total = done = 0
        for measured in pool.map(reader.measured, wanted):
            before = known.get(measured.path)
            if before is not None and before.same_stat(measured) and before.size is not None:
                result[measured.path] = before
            total += 0 if measured.path in result else measured.size or 0
        # Hash the others.
        for entry in pool.map(reader.hashed, [path for path in wanted if path not in result]):
            result[entry.path] = entry
            done += entry.size or 0
            if on_hashed:
                on_hashed(entry)
            if on_progress:
                on_progress("hash the sources (MiB)", done >> 20, max(total, done) >> 20)
    lacking = [entry for entry in result.values() if entry.sha256 is not None and entry.extent is None]
    for number, entry in enumerate(_with_extents(reader, lacking, threads)):
        result[entry.path] = entry
        if on_progress:
            on_progress("measure the sources", number + 1, len(lacking))
    return {path: result[path] for path in wanted}


def _with_extents(reader: _Reader, entries: Sequence[Fingerprint], threads: int) -> Iterator[Fingerprint]:
    """The entries, in order, with the extents of their sources."""
    with ExitStack() as stack:
        idle: SimpleQueue[ExtentReader] = SimpleQueue()
        for _ in range(threads):
            idle.put(stack.enter_context(ExtentReader()))

        def measured(entry: Fingerprint) -> Fingerprint:
            extents = idle.get()
            try:
                return replace(entry, extent=extents.read(reader.located(entry.path), entry.size or 0))
            except (OSError, ValueError):  # it is gone or was exchanged: its unit will say so
                return entry
            finally:
                idle.put(extents)

        yield from stack.enter_context(ThreadPoolExecutor(threads)).map(measured, entries)


def has_changed(source: Path, known: Fingerprint, *, follow_links: bool = False) -> bool:
    """Whether a source may no longer be read, or has another size or other times than in its fingerprint."""
    return not known.same_stat(_Reader(source, follow_links).measured(known.path))


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file's content; never waits for one that was exchanged for a pipe."""
    with open_regular(path) as stream:
        return hash_stream(stream)


@dataclass(frozen=True)
class _Reader:
    """Reads sources. What is wrong with one of them is in the fingerprint; errors of the machine are raised."""

    source: Path
    follow_links: bool

    def located(self, path: str) -> Path:
        """Real path of a source, to be opened at once."""
        return locate(self.source, path, follow_links=self.follow_links)

    def measured(self, path: str) -> Fingerprint:
        """Size and times, without reading it; `error` says why there is no hash."""
        return self._caught(path, lambda: self._measure(path, self.located(path)))

    def hashed(self, path: str) -> Fingerprint:
        """Size, times and hash."""
        return self._caught(path, lambda: self._hash(path))

    def _caught(self, path: str, read: Callable[[], Fingerprint]) -> Fingerprint:
        try:
            return read()
        except (OSError, ValueError) as error:
            if is_machine_error(error):  # no fault of the file: its units would be quarantined for nothing
                if isinstance(error, OSError):
                    error.filename = error.filename or str(self.source / path)
                raise
            text = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return Fingerprint(path=path, size=None, mtime_ns=None, sha256=None, error=shortened(text))

    def _hash(self, path: str) -> Fingerprint:
        full = self.located(path)
        before = self._measure(path, full)
        if before.size is not None and before.size >= _SLOW:
            log.info("hashing %s: %d GiB", display_path(path), before.size >> 30)
        # Measured before and after: a file that is still being copied would get a hash that is nobody's.
        sha256 = hash_file(full) if before.listing is None else self._hash_folder(full)
        if not self._measure(path, full).same_stat(before):
            raise OSError("it changed while it was read; run again when it is complete")
        return replace(before, sha256=sha256, error=None)

    def _measure(self, path: str, full: Path) -> Fingerprint:
        """Size and times of a located source."""
        status = full.stat()
        if not stat.S_ISDIR(status.st_mode):
            size, mtime_ns = status.st_size, status.st_mtime_ns
            return Fingerprint(path=path, size=size, mtime_ns=mtime_ns, sha256=None, error="not hashed")
        # A folder of frames: a file that is replaced, added or renamed changes the listing, whatever the sums are.
        files = [(file.name, file.stat()) for file in self._folder_files(full)]
        size = sum(file.st_size for _, file in files)
        if size > SOURCE_BYTES:
            raise ValueError(f"{full} has {size:,} bytes; a source may have {SOURCE_BYTES:,}")
        entries = [[to_stored(name), file.st_size, file.st_mtime_ns] for name, file in files]
        return Fingerprint(
            path=path,
            size=size,
            mtime_ns=max((file.st_mtime_ns for _, file in files), default=status.st_mtime_ns),
            listing=hash_bytes(canonical_json(entries)),
            sha256=None,
            error="not hashed",
        )

    def _folder_files(self, folder: Path) -> list[Path]:
        """Files directly in a folder of frames, by name; hidden ones left out."""
        names = list(itertools.islice(folder.iterdir(), FOLDER_FILES + 1))
        if len(names) > FOLDER_FILES:
            raise ValueError(f"{folder} has more than {FOLDER_FILES:,} files")
        files = sorted(file for file in names if not file.name.startswith(".") and file.is_file())
        for file in files:
            if not self.follow_links and file.is_symlink() and not is_inside(self.source, file):
                raise ValueError(f"{file} {leads_out(file.resolve())}")
        return files

    def _hash_folder(self, folder: Path) -> str:
        """Hash over the sorted names and content hashes of a folder's files."""
        files = self._folder_files(folder)
        return hash_bytes(canonical_json([[to_stored(file.name), hash_file(file)] for file in files]))


def write_fingerprints(storage: Storage, dataset: str, fingerprints: Mapping[str, Fingerprint]) -> str:
    """Write the table of a data set's fingerprints; returns its path in the storage."""
    sink = io.BytesIO()
    records = [_to_record(entry) for _, entry in sorted(fingerprints.items())]
    pq.write_table(pa.Table.from_pylist(records, schema=SOURCES_SCHEMA), sink, compression="zstd", version="2.6")
    path = dataroot.sources(dataset)
    storage.write(path, sink.getvalue())
    return path


def read_fingerprints(storage: Storage, dataset: str) -> dict[str, Fingerprint]:
    """Inverse of `write_fingerprints`; empty when there is no table yet, or one of an unknown version.

    Entries of a table from before extents have none.
    """
    path = dataroot.sources(dataset)

    def check(schema: pa.Schema) -> None:
        if not any(schema.equals(known) for known in (SOURCES_SCHEMA, _OLD_SCHEMA)):
            raise ValueError(f"{storage.describe(path)} is of another version")

    try:
        table = read_table(storage.read(path, _TABLE_BYTES, "table of sources"), storage.describe(path), check)
        entries = [_from_record(record) for record in table.to_pylist()]
    except FileNotFoundError:
        return {}
    except ValueError as error:  # everything is hashed again, which gives the same table
        log.warning("%s: all sources are read again", error)
        return {}
    return {entry.path: entry for entry in entries}


def _to_record(entry: Fingerprint) -> dict[str, Any]:
    """A row of the table; one without an extent has none of its columns."""
    record = {**asdict(entry), "path": to_stored(entry.path)}
    return record | (record.pop("extent") or {})


def _from_record(record: dict[str, Any]) -> Fingerprint:
    extent = {field.name: record.pop(field.name, None) for field in fields(Extent)}
    known = None if None in extent.values() else Extent(**extent)
    return Fingerprint(**{**record, "path": from_stored(record["path"])}, extent=known)
