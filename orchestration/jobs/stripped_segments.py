"""Segments of which units are taken out: their rows go from the commit records, and their samples from the tars.

Files are replaced in an order in which a kill between two steps leaves nothing wrong: the new tar, the record that
names it, then the old tar goes. What was not finished is found again, since every step looks at what there is.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

from orchestration.units.records import UnitRecord
from orchestration.units.segment_records import SegmentRecord, SegmentRow, read_segment
from shards.pack import pack_shard
from shards.plan import PlannedSample
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import one_line

log = logging.getLogger(__name__)


def strip_segments(storage: Storage, is_gone: Callable[[str], bool]) -> None:
    """Take units out of every segment of every job, committed or not, planned or not.

    A tar that no record names is deleted, since nobody can tell cheaply whose samples it holds; a worker that still
    makes one finds its segment undone, and that is run again. A record that cannot be read is deleted with all tars of
    its segment, for the same reason.

    Args:
        storage: DATA, of which this process is the only writer.
        is_gone: Tells of the key of a unit whether it goes.
    """
    named: set[str] = set()
    for job, name in _committed(storage):
        try:
            record = read_segment(storage, job, name)
        except ValueError as error:
            log.warning("%s; it is deleted, and its units are run again", one_line(str(error)))
            storage.delete(dataroot.segment_record(job, name))
            continue
        if any(is_gone(row.key) for row in record.rows):
            record = _strip(storage, record, is_gone)
        if record.file is not None:
            named.add(record.file)
    for file in storage.list("units", ".tar"):
        if dataroot.segment_of_tar(file.path) and file.path not in named:
            storage.delete(file.path)


def _committed(storage: Storage) -> Iterator[tuple[str, str]]:
    """Job and name of every segment that has a record."""
    files = storage.list("records", ".parquet")
    return (found for file in files if (found := dataroot.segment_of_record(file.path)))


def _strip(storage: Storage, record: SegmentRecord, is_gone: Callable[[str], bool]) -> SegmentRecord:
    """Record of a segment without some units, written; its old tar goes with all that are not named."""
    rows = [row for row in record.rows if not is_gone(row.key)]
    if not any(row.record and row.record.samples for row in rows):
        stripped = replace(record, rows=rows, file_bytes=0, file_sha256=None)
    elif record.file is not None and storage.exists(record.file):
        stripped = _rewritten(storage, record, rows)
    else:  # all of it is packed, and the tar is gone already
        stripped = replace(record, rows=rows)
    if rows:
        storage.write(stripped.path, stripped.to_parquet())
    else:
        storage.delete(stripped.path)
    return stripped


def _rewritten(storage: Storage, record: SegmentRecord, rows: list[SegmentRow]) -> SegmentRecord:
    """Record of the rows, with a new tar of their samples."""
    assert record.file is not None
    attempt = uuid.uuid4().hex[:16]
    target = dataroot.unit(record.job, record.segment, attempt)
    samples = [
        PlannedSample.of_members(
            key=sample.key, file=record.file, members=sample.members, num_frames=sample.num_frames, sha256=sample.sha256
        )
        for row in rows
        if row.record is not None
        for sample in row.record.samples
    ]
    with storage.staged(target) as sink:
        packed = pack_shard(storage, samples, sink)
    places = {sample.key: sample.members for sample in packed.samples}

    def moved(unit: UnitRecord) -> UnitRecord:
        # Hashes stay: they are about the samples, not about their place.
        there = [replace(sample, members=places[sample.key]) for sample in unit.samples]
        return replace(unit, samples=there, file=target if there else None)

    return replace(
        record,
        attempt=attempt,
        rows=[row if row.record is None else replace(row, record=moved(row.record)) for row in rows],
        file_bytes=packed.size,
        file_sha256=packed.sha256,
    )
