"""Fingerprints of the files in SOURCE: what ingest puts into its provenance keys.

A file is hashed once; later jobs hash it again only when its size or time changed (or when asked to). A file that
cannot be read has an entry with the error, so that its units are quarantined with that cause.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.source_listing import from_stored, to_stored
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json, hash_bytes, hash_file
from talkinghead.runtime.errors import is_machine_error

SOURCES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),
        ("listing", pa.string()),
        ("sha256", pa.string()),
        ("error", pa.string()),
    ]
)


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

    def __post_init__(self) -> None:
        assert (self.sha256 is None) != (self.error is None)

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
    on_hashed: Callable[[Fingerprint], None] | None = None,
) -> dict[str, Fingerprint]:
    """Fingerprint files (or folders of frames) below SOURCE.

    Args:
        source: Folder SOURCE.
        paths: Paths relative to SOURCE, as in the catalog.
        known: Fingerprints of an earlier job, taken over where size and time are the same.
        rehash: Whether to hash everything again.
        threads: Number of files that are read at once.
        on_hashed: Called in the caller's thread for each file that was hashed (not for those taken over).

    Returns:
        Path → fingerprint, sorted by path.
    """
    known = {} if rehash or known is None else known
    wanted = sorted(set(paths))
    result: dict[str, Fingerprint] = {}
    # Hashing reads and releases the interpreter lock, so threads are enough; `map` keeps the sorted order.
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="fingerprint") as pool:
        for entry in pool.map(lambda path: _fingerprint(source, path, known.get(path)), wanted):
            result[entry.path] = entry
            if on_hashed and entry is not known.get(entry.path):
                on_hashed(entry)
    return result


def _fingerprint(source: Path, path: str, known: Fingerprint | None) -> Fingerprint:
    full = source / path
    try:
        before = _measure(full, path)
        if known is not None and known.same_stat(before):  # an entry with an error has no size
            return known
        # Measured before and after: a file that is still being copied would get a hash that is nobody's.
        sha256 = _hash_folder(full) if before.listing is not None else hash_file(full)
        if not _measure(full, path).same_stat(before):
            raise OSError("it changed while it was read; run again when it is complete")
    except OSError as error:
        if is_machine_error(error):  # no fault of the file: its units would be quarantined for nothing
            error.filename = error.filename or str(full)
            raise
        return Fingerprint(path=path, size=None, mtime_ns=None, sha256=None, error=error.strerror or str(error))
    return Fingerprint(path=path, size=before.size, mtime_ns=before.mtime_ns, listing=before.listing, sha256=sha256)


def _measure(full: Path, path: str) -> Fingerprint:
    """Size and times of a source, without reading it; its `error` says that nothing was hashed yet."""
    status = full.stat()
    if stat.S_ISREG(status.st_mode):
        return Fingerprint(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=None, error="not hashed")
    if not stat.S_ISDIR(status.st_mode):
        raise OSError("neither a file nor a folder")
    # A folder of frames: a file that is replaced, added or renamed changes the listing, whatever the sums are.
    files = [(file.name, file.stat()) for file in _folder_files(full)]
    entries = [[to_stored(name), file.st_size, file.st_mtime_ns] for name, file in files]
    return Fingerprint(
        path=path,
        size=sum(file.st_size for _, file in files),
        mtime_ns=max((file.st_mtime_ns for _, file in files), default=status.st_mtime_ns),
        listing=hash_bytes(canonical_json(entries)),
        sha256=None,
        error="not hashed",
    )


def has_changed(source: Path, known: Fingerprint) -> bool:
    """Whether size or times of a source are no longer those of its fingerprint."""
    try:
        return not known.same_stat(_measure(source / known.path, known.path))
    except OSError as error:
        if is_machine_error(error):
            raise
        return True


def _folder_files(folder: Path) -> list[Path]:
    """Files directly in a folder of frames, by name; hidden ones left out."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())


def _hash_folder(folder: Path) -> str:
    """Hash over the sorted names and content hashes of a folder's files."""
    return hash_bytes(canonical_json([[to_stored(file.name), hash_file(file)] for file in _folder_files(folder)]))


def write_fingerprints(storage: Storage, dataset: str, fingerprints: Mapping[str, Fingerprint]) -> str:
    """Write the table of a data set's fingerprints; returns its path in the storage."""
    records = [{**asdict(entry), "path": to_stored(path)} for path, entry in sorted(fingerprints.items())]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=SOURCES_SCHEMA), sink, compression="zstd", version="2.6")
    path = dataroot.sources(dataset)
    storage.write(path, sink.getvalue())
    return path


def read_fingerprints(storage: Storage, dataset: str) -> dict[str, Fingerprint]:
    """Inverse of `write_fingerprints`; empty when there is no table yet, or one of another version."""
    try:
        table = pq.ParquetFile(io.BytesIO(storage.read(dataroot.sources(dataset)))).read()
    except (FileNotFoundError, pa.ArrowInvalid):
        return {}  # everything is hashed again, which gives the same table
    if not table.schema.equals(SOURCES_SCHEMA):
        return {}
    entries = [Fingerprint(**{**record, "path": from_stored(record["path"])}) for record in table.to_pylist()]
    return {entry.path: entry for entry in entries}
