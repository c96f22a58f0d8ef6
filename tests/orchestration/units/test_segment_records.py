"""Records of segments: what is written comes back, and a stranger's file is one line."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.units.records import RejectedPiece, SampleRecord, UnitRecord
from orchestration.units.segment_records import SegmentRecord, SegmentRow, read_segment, segment_names
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import Member, Rejection
from tests.support.segments import JOB

SEGMENT, PKEY = "segment-clips-000003-001-0123456789ab", "0" * 16
BARE = SegmentRecord(job=JOB, segment=SEGMENT, attempt="f" * 16, file_bytes=2048, file_sha256="1" * 64)


def sample(key: str, offset: int = 512) -> UnitRecord:
    made = SampleRecord(
        key=key,
        num_frames=5,
        members=[Member(suffix="toy.npy", offset=offset, size=100)],
        sha256="2" * 64,
        scores={"height": 0.1, "width": None},
        labels={"emotion": "happy"},
    )
    return UnitRecord(
        job=JOB, key=key, pkey=PKEY, samples=[made], file=BARE.file, file_bytes=2048, file_sha256="3" * 64, frames=5,
        seconds=1.25, details={"made_of": {"column": "toy"}},
    )  # fmt: skip


REJECTED = UnitRecord(
    job=JOB, key="c", pkey=PKEY, rejected=[RejectedPiece(key="c", rejection=Rejection(reason="no_face", score=0.5))]
)
RECORD = replace(
    BARE,
    rows=[
        SegmentRow.of(sample("b")),
        SegmentRow.of(sample("a", 4096)),
        SegmentRow.of(REJECTED),
        SegmentRow(key="d", pkey=PKEY, outcome="quarantined", reason="crash:SIGSEGV", attempts=3),
        SegmentRow(key="e", pkey=PKEY, outcome="alone", attempts=2),
    ],
)


def test_a_record_comes_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write(RECORD.path, RECORD.to_parquet())
    assert read_segment(storage, JOB, SEGMENT) == RECORD
    assert segment_names(storage, JOB) == [SEGMENT] and segment_names(storage, "derive-toy-2") == []
    assert list(RECORD.units()) == [("b", PKEY), ("a", PKEY), ("c", PKEY)]
    # Any reader of Parquet sees what became of each unit.
    table = pq.read_table(tmp_path / RECORD.path)
    assert table.column("outcome").to_pylist() == ["sample", "sample", "rejected", "quarantined", "alone"]
    assert table.column("reason").to_pylist() == [None, None, "no_face", "crash:SIGSEGV", None]


def test_thousands_of_rows_take_little_room() -> None:
    """What the units of a column say of themselves is nearly the same: 100 MB for 10^5 of them are many."""
    details = {"libraries": {f"library-{number}": "1.2.3" for number in range(20)}, "made_of": {"text": "x" * 500}}
    rows = [SegmentRow.of(replace(sample(f"clip-{number:06d}"), details=details)) for number in range(1000)]
    assert len(replace(RECORD, rows=rows).to_parquet()) < 100 * len(rows)


def parquet(rows: list[dict[str, Any]], **about: Any) -> bytes:
    """A file like a record's, with rows and a header that may be wrong."""
    table = pq.read_table(io.BytesIO(RECORD.to_parquet()))
    names = ("job", "segment", "attempt", "file_bytes", "file_sha256")
    header = {name: getattr(RECORD, name) for name in names} | about
    import json

    made = pa.Table.from_pylist([{**table.to_pylist()[0], **row} for row in rows], schema=table.schema)
    sink = io.BytesIO()
    pq.write_table(made.replace_schema_metadata({b"talkinghead": json.dumps(header).encode()}), sink)
    return sink.getvalue()


WRONG = {
    "a place elsewhere": parquet([{}], attempt="../../elsewhere"),
    "a field of another version": parquet([{}], more=1),
    "no header": parquet([{}], job=None),
    "an outcome": parquet([{"outcome": "lost"}]),
    "a sample without its record": parquet([{"record": None}]),
    "a quarantine with a record": parquet([{"outcome": "quarantined"}]),
    "a record that is no object": parquet([{"record": "[]"}]),
    "a record of another form": parquet([{"record": '{"samples": 3}'}]),
    "a record of other names": parquet([{"record": '{"path": "/etc/passwd"}'}]),
    "no key": parquet([{"key": None}]),
    "a unit twice": parquet([{}, {}]),
    "samples without a tar": parquet([{}], file_sha256=None),
    "an offset below 0": parquet([{"record": '{"file_bytes": -1}'}]),
    "another segment": replace(RECORD, segment=f"{SEGMENT}0").to_parquet(),
    "no table": b"PAR1 and no more",
    "nothing": b"",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_strangers_record_is_one_line(what: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write(RECORD.path, WRONG[what])
    with pytest.raises(ValueError, match=str(tmp_path / RECORD.path)) as error:
        read_segment(storage, JOB, SEGMENT)
    assert "\n" not in str(error.value)


def test_a_cut_record_is_one_line(tmp_path: Path) -> None:
    storage, data = Storage(tmp_path), RECORD.to_parquet()
    for size in range(0, len(data), 97):
        storage.write(RECORD.path, data[:size])
        with pytest.raises(ValueError, match=str(tmp_path / RECORD.path)):
            read_segment(storage, JOB, SEGMENT)


def test_names_of_segments_are_told_from_those_of_units() -> None:
    assert dataroot.segment_of_record(dataroot.record(JOB, "segment-a", PKEY)) is None
    assert dataroot.segment_of_tar(dataroot.unit(JOB, "folder-clip", PKEY)) is None
    assert dataroot.keys_of_record(RECORD.path) is None and asdict(RECORD)["segment"] == SEGMENT
    assert dataroot.undamaged(dataroot.damaged(RECORD.path, 3)) == RECORD.path
