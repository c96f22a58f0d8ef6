"""Segments in the ledger: their rows count like records, and a unit's own record outweighs its row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.units.ledger import Ledger, quarantined, release
from orchestration.units.lost import lost_outputs
from orchestration.units.records import Attempt, UnitRecord
from orchestration.units.retry import quarantine
from orchestration.units.segment import Segment, SegmentTar, commit_segment
from orchestration.units.segment_records import SegmentRecord, SegmentRow
from orchestration.units.unit import CHANGED, Output, OutputChangedError, Unit, failed_attempt, run_unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.segments import JOB, make_unit, planned, records, tars


def commit(storage: Storage, units: list[Unit]) -> SegmentRecord:
    """Commit a segment in which the units that are called so failed."""

    def make(scratch: Path, path: str) -> tuple[list[SegmentRow], int]:
        rows = []
        with SegmentTar(storage, scratch, path) as tar:
            for unit in units:
                if unit.key == "failed":
                    last = quarantine(storage, unit, [Attempt(cause="error:Test", message="not now")])
                    rows.append(SegmentRow(key=unit.key, pkey=unit.pkey, outcome="quarantined", reason=last.cause))
                    continue
                output = Output(contents=[(unit.key, 3, {"txt": unit.key.encode() * 100})])
                rows.append(SegmentRow.of(tar.add(unit, output)))
            return rows, tar.end

    return commit_segment(storage, Segment(job=JOB, name=units[0].segment, units=tuple(units)), make)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data")


@pytest.fixture
def units(tmp_path: Path) -> list[Unit]:
    return planned([make_unit(tmp_path, key) for key in ("a", "failed", "b")])


def pair(unit: Unit) -> tuple[str, str]:
    return unit.key, unit.pkey


def test_rows_count_and_a_failure_is_released_and_tried_on_its_own(storage: Storage, units: list[Unit]) -> None:
    record = commit(storage, units)
    ledger = Ledger(storage, JOB)
    assert all(ledger.is_done(unit) for unit in units) and ledger.quarantined == {pair(units[1])}
    assert ledger.committed == {pair(units[0]), pair(units[2])} and list(ledger.segments) == [record.segment]
    assert [found.key for found in ledger.commits()] == ["a", "b"]
    assert ledger.path_of(pair(units[0])) == record.path and ledger.segment_of(pair(units[1])) == ""
    results = ledger.results(map(pair, units))
    assert results["a"] == record.units()[pair(units[0])] and results["failed"] == quarantined(storage)[0]
    assert lost_outputs(ledger, units) == {}

    # Released, it is pending; then it has a record of its own, and the segment's is as it was.
    release(storage, quarantined(storage))
    assert [unit.key for unit in units if not Ledger(storage, JOB).is_done(unit)] == ["failed"]
    run_unit(storage, units[1], attempts=1)
    ledger = Ledger(storage, JOB)
    assert [found.key for found in ledger.commits()] == ["a", "b", "failed"] and not ledger.quarantined
    assert ledger.path_of(pair(units[1])) == dataroot.record(JOB, *pair(units[1]))
    assert ledger.segments == {record.segment: record}


def test_an_own_record_outweighs_the_row(storage: Storage, units: list[Unit]) -> None:
    """Such as one that an earlier release has written."""
    run_unit(storage, units[0], attempts=1)
    record = commit(storage, units)
    ledger = Ledger(storage, JOB)
    [own] = [found for found in ledger.commits() if found.key == "a"]
    assert own.file == dataroot.unit(JOB, "a", units[0].pkey) != record.file
    ledger.set_aside(dataroot.record(JOB, *pair(units[0])), "it is damaged", "the row counts")
    assert ledger.is_done(units[0]) and ledger.segment_of(pair(units[0])) == record.segment
    assert Ledger(storage, JOB).results([pair(units[0])])["a"] == record.units()[pair(units[0])]


def test_a_damaged_record_counts_as_none(storage: Storage, units: list[Unit]) -> None:
    record = commit(storage, units)
    storage.write(record.path, storage.read(record.path)[:-100])
    ledger = Ledger(storage, JOB)
    assert [unit.key for unit in units if not ledger.is_done(unit)] == ["a", "b"] and list(ledger.unreadable) == [
        record.path
    ]
    lost_outputs(ledger, units)
    assert records(storage) == [] and storage.exists(dataroot.damaged(record.path, 0))


def test_a_lost_tar_makes_the_segment_pending(storage: Storage, units: list[Unit]) -> None:
    record = commit(storage, units)
    storage.delete(record.file or "")
    ledger = Ledger(storage, JOB)
    assert lost_outputs(ledger, units) == {} and not ledger.segments
    assert [unit.key for unit in units if not ledger.is_done(unit)] == ["a", "b"] and records(storage) == []
    assert storage.exists(dataroot.damaged(record.path, 0))
    again = commit(storage, units)
    assert again.attempt != record.attempt and tars(storage) == [again.file]
    # Freed units do not miss it.
    storage.delete(again.file or "")
    freed = [replace(unit, is_packed=True, is_freed=True) for unit in units]
    assert lost_outputs(Ledger(storage, JOB), freed) == {} and records(storage) == [again.path]


def test_packed_units_are_made_again_on_their_own_and_must_be_the_same(storage: Storage, units: list[Unit]) -> None:
    """Their shard is lost, too: the record stays, and says which bytes are right."""
    record = commit(storage, units)
    storage.delete(record.file or "")
    packed = [replace(unit, is_packed=True) for unit in units]
    ledger = Ledger(storage, JOB)
    assert lost_outputs(ledger, packed).keys() == {"a", "b"} and ledger.segments == {record.segment: record}
    made = run_unit(storage, packed[0], attempts=1)
    assert made.samples[0].sha256 == record.units()[pair(units[0])].samples[0].sha256
    assert lost_outputs(Ledger(storage, JOB), packed).keys() == {"b"}
    other = replace(packed[2], payload={**packed[2].payload, "behaviour": "threads"})
    with pytest.raises(OutputChangedError) as error:
        run_unit(storage, other, attempts=1)
    assert failed_attempt(error.value, alone=False, seconds=0.0).cause == CHANGED
    assert isinstance(Ledger(storage, JOB).results([pair(units[2])])["b"], UnitRecord)
