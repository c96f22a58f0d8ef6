"""Commit records of segments: a table with a row for each unit, which names the one tar that holds their samples.

Units that are committed together are a segment (`orchestration.units.segment`). Several workers may have done the same
one, each into a tar of its own attempt; the record is created only if there is none, and so says which tar counts. It
may be a stranger's, like all of DATA.
"""

from __future__ import annotations

import io
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.units.records import UnitRecord, checked
from talkinghead import dataroot
from talkinghead.config import from_json, shown
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.tables import read_table

SEGMENT_RECORD_BYTES = 64 << 20
"""Largest record of a segment that is read."""

Outcome = Literal["sample", "rejected", "quarantined", "alone"]

_METADATA = b"talkinghead"  # name of the header in the schema's metadata
_TABLE = {
    "key": pa.string(),
    "pkey": pa.string(),
    "outcome": pa.string(),
    "reason": pa.string(),
    "score": pa.float64(),
    "attempts": pa.int32(),
    "record": pa.string(),
}
_ATTEMPT = re.compile("[0-9a-f]{16}")
_MAY_LACK = ("reason", "score", "record")
_HERE = ("job", "key", "pkey", "file")  # fields of a unit's record that the table has elsewhere


@dataclass(frozen=True, kw_only=True)
class SegmentRow:
    """What became of one unit of a segment when the segment was committed."""

    key: str
    pkey: str
    outcome: Outcome
    """`sample` and `rejected`: done, `record` has the rest. `quarantined`: it failed, as its quarantine record says;
    when that is released, the unit is run on its own. `alone`: it was done in a try alone, and has a record of its own.
    """
    reason: str | None = None
    """Why it was rejected, or the cause of its quarantine."""
    score: float | None = None
    """Score that the reason is about."""
    attempts: int = 1
    """Tries made."""
    record: UnitRecord | None = None
    """Commit record of a unit that is done here. Its `file` is the segment's tar; `file_bytes` and `file_sha256` are
    those of the tar that the unit would have on its own, so that they do not depend on its neighbours."""

    def __post_init__(self) -> None:
        if (self.record is not None) != (self.outcome in ("sample", "rejected")):
            raise ValueError(f"the outcome of {self.key} is {self.outcome}")

    @classmethod
    def of(cls, record: UnitRecord) -> SegmentRow:
        """Row of a unit that is done."""
        rejection = record.rejected[0].rejection if record.rejected and not record.samples else None
        return cls(
            key=record.key,
            pkey=record.pkey,
            outcome="sample" if rejection is None else "rejected",
            reason=rejection and rejection.reason,
            score=rejection and rejection.score,
            attempts=record.attempts,
            record=record,
        )


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """Commit record of a segment."""

    job: str
    segment: str
    """Name of the segment."""
    attempt: str
    """16 hexadecimal digits that tell the tar of the worker who was first from those of others."""
    rows: list[SegmentRow] = field(default_factory=list)
    """The units that were handed to the worker, in the order of the tar."""
    file_bytes: int = 0
    file_sha256: str | None = None
    """SHA-256 of the tar; None: there is none, since no unit gave a sample."""

    def __post_init__(self) -> None:
        if not _ATTEMPT.fullmatch(self.attempt):
            raise ValueError(f"its attempt is {shown(self.attempt)}")
        if len({(row.key, row.pkey) for row in self.rows}) != len(self.rows):
            raise ValueError("a unit stands in it twice")
        if self.file is None and any(row.outcome == "sample" for row in self.rows):
            raise ValueError("it has samples and names no tar")

    @property
    def file(self) -> str | None:
        """Path of the tar, relative to DATA."""
        return None if self.file_sha256 is None else dataroot.unit(self.job, self.segment, self.attempt)

    @property
    def path(self) -> str:
        """Path of the record, relative to DATA."""
        return dataroot.segment_record(self.job, self.segment)

    def units(self) -> dict[tuple[str, str], UnitRecord]:
        """(key, provenance key) → commit record, of the units that are done here."""
        return {(row.key, row.pkey): row.record for row in self.rows if row.record is not None}

    def to_parquet(self) -> bytes:
        """Content of the record file."""
        about = {name: getattr(self, name) for name in ("job", "segment", "attempt", "file_bytes", "file_sha256")}
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in self.rows] for name in _TABLE if name != "record"
        }
        columns["record"] = [None if row.record is None else _stored(row.record) for row in self.rows]
        schema = pa.schema(list(_TABLE.items()), {_METADATA: canonical_json(about)})
        arrays = [pa.array(columns[name], kind) for name, kind in _TABLE.items()]
        sink = io.BytesIO()
        # What units of a column say of themselves is nearly the same for all: it is compressed to a tenth and less.
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd", use_dictionary=False)
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, name: str = "the record") -> SegmentRecord:
        """Parse a record file.

        Args:
            data: Content of the file.
            name: Name of the file, for messages.

        Raises:
            ValueError: It is no record of a segment.
        """

        def check(schema: pa.Schema) -> None:
            if dict(zip(schema.names, schema.types, strict=True)) != _TABLE:
                raise ValueError(f"{name} is no record of ours: it has other columns")

        table = read_table(data, name, check)
        if any(table.column(column).null_count for column in _TABLE if column not in _MAY_LACK):
            raise ValueError(f"{name} is no record of ours: a row lacks a value")
        about = parse_json((table.schema.metadata or {}).get(_METADATA, b"null"), name)
        bare = checked(cls, about, name)
        try:
            rows = [_row(row, bare) for row in table.to_pylist()]
            return replace(bare, rows=rows)
        except ValueError as error:
            raise ValueError(f"{name} is no record of ours: {error}") from None


def _stored(record: UnitRecord) -> str:
    return canonical_json({name: value for name, value in asdict(record).items() if name not in _HERE}).decode()


def _row(row: dict[str, Any], segment: SegmentRecord) -> SegmentRow:
    value = None if row["record"] is None else parse_json(row["record"], "a row")
    if isinstance(value, dict):
        file = segment.file if value.get("samples") else None
        value = {**value, "job": segment.job, "key": row["key"], "pkey": row["pkey"], "file": file}
    return from_json(SegmentRow, row | {"record": value})


def read_segment(storage: Storage, job: str, segment: str) -> SegmentRecord:
    """Record of a segment.

    Raises:
        FileNotFoundError: It is not committed.
        ValueError: The file is no record of this segment.
    """
    path = dataroot.segment_record(job, segment)
    name = storage.describe(path)
    record = SegmentRecord.from_parquet(storage.read(path, SEGMENT_RECORD_BYTES, "record"), name)
    if (record.job, record.segment) != (job, segment):
        raise ValueError(f"{name} is the record of another segment, {record.job} {record.segment}")
    return record


def segment_names(storage: Storage, job: str) -> list[str]:
    """Names of the segments of a job that have a commit record, sorted."""
    files = storage.list(dataroot.records(job), ".parquet")
    return sorted(found[1] for file in files if (found := dataroot.segment_of_record(file.path)) and found[0] == job)
