"""Units whose output is lost, with the executor's own workers: run again, and compared where they are packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.units.executor import RetrySettings, Tally, run_units
from orchestration.units.ledger import Ledger
from orchestration.units.lost import lost_outputs
from orchestration.units.output_tar import OutputChangedError
from orchestration.units.records import UnitRecord
from orchestration.units.unit import Unit, run_unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.object_store import LocalS3


def units(tmp_path: Path, **changes: object) -> list[Unit]:
    return [
        Unit(
            job="test",
            key=key,
            pkey="0123456789abcdef",
            function="tests.support.poison:behave",
            payload={"behaviour": "sample", "runs": str(tmp_path / "runs")},
            source=f"{key}.mp4",
            time_limit_s=240.0,
            **changes,  # type: ignore[arg-type]
        )
        for key in ("one", "two", "three")
    ]


def run(storage: Storage, planned: list[Unit]) -> Tally:
    with Cluster(ClusterSettings(workers=2)) as cluster:
        return run_units(storage, "test", planned, cluster, RetrySettings(attempts=2, memory_gb=2.0))


def record_of(storage: Storage, unit: Unit) -> UnitRecord:
    record = Ledger(storage, unit.job).results([(unit.key, unit.pkey)])[unit.key]
    assert isinstance(record, UnitRecord) and record.file
    return record


def test_what_is_lost_is_made_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    planned = units(tmp_path)
    assert run(storage, planned).committed == 3
    before = {unit.key: record_of(storage, unit) for unit in planned}
    file = before["one"].file
    assert file
    content = storage.read(file)
    storage.delete(file)
    broken = dataroot.record("test", "two", planned[1].pkey)
    storage.write(broken, b"{")
    # A packed unit whose file was freed is fine.
    freed = [replace(unit, is_packed=True, is_freed=True) for unit in planned]
    tally = run(storage, [freed[0], *freed[2:]])
    assert (tally.done_before, tally.committed) == (2, 0) and not storage.exists(file)

    tally = run(storage, planned)
    assert (tally.done_before, tally.committed) == (1, 2)
    assert storage.read(file) == content and record_of(storage, planned[0]).file_sha256 == before["one"].file_sha256
    assert storage.read(dataroot.damaged(broken, 0)) == b"{"
    assert storage.exists(dataroot.damaged(dataroot.record("test", "one", planned[0].pkey), 0))
    # A packed one keeps its record, whose bytes the new output must have.
    storage.delete(file)
    packed = [replace(unit, is_packed=True) for unit in planned]
    first = storage.read(dataroot.record("test", "one", planned[0].pkey))
    assert run(storage, packed).committed == 1
    assert storage.read(file) == content and storage.read(dataroot.record("test", "one", planned[0].pkey)) == first
    storage.delete(file)
    alter(storage, planned[0])
    gone = record_of(storage, planned[1]).file
    assert gone
    storage.delete(gone)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"one.*came out with other bytes than before.*put the shard back"):
            run(storage, packed)
        # The others are done, and it is no fault of the input.
        assert not storage.exists(file) and storage.exists(gone) and not storage.list(dataroot.quarantines("test"))
    assert run(storage, packed[1:]).committed == 0


def alter(storage: Storage, unit: Unit) -> None:
    """Make a record say that its samples had other bytes."""
    record = record_of(storage, unit)
    samples = [replace(sample, sha256="0" * 64) for sample in record.samples]
    storage.write(dataroot.record(unit.job, unit.key, unit.pkey), replace(record, samples=samples).to_json())


def test_what_is_packed_never_takes_its_name_with_other_bytes(tmp_path: Path) -> None:
    """Whatever kills the command: the worker compares before the file is there."""
    storage = Storage(tmp_path / "data")
    [unit, *_] = units(tmp_path, is_packed=True)
    run_unit(storage, unit, attempts=1)
    first = record_of(storage, unit)
    assert first.file
    storage.delete(first.file)
    alter(storage, unit)
    with pytest.raises(OutputChangedError, match=r"units/test/.*one.*came out with other bytes"):
        run_unit(storage, unit, attempts=1)
    assert not storage.list(dataroot.units("test")) and not storage.list("tmp")
    # The rest of the record does not matter: its samples may have lain elsewhere.
    samples = [replace(s, members=[replace(m, offset=m.offset + 512) for m in s.members]) for s in first.samples]
    moved = replace(first, file=dataroot.unit("test", "one", f"{unit.pkey}-r1"), samples=samples)
    storage.write(dataroot.record("test", "one", unit.pkey), moved.to_json())
    run_unit(storage, unit, attempts=1)
    assert record_of(storage, unit) == first and storage.exists(first.file)


def test_what_is_lost_in_an_object_store_is_found(s3: LocalS3, tmp_path: Path) -> None:
    storage = Storage(s3.uri("lost"))
    planned = units(tmp_path)
    for unit in planned:
        run_unit(storage, unit, attempts=1)
    file = record_of(storage, planned[0]).file
    assert file
    storage.delete(file)
    broken = dataroot.record("test", "two", planned[1].pkey)
    storage.write(broken, b"")
    ledger = Ledger(storage, "test")
    assert lost_outputs(ledger, planned) == {}
    assert [ledger.is_done(unit) for unit in planned] == [False, False, True]
    assert storage.read(dataroot.damaged(broken, 0)) == b"" and not storage.exists(broken)
    for unit in planned[:2]:
        run_unit(storage, unit, attempts=1)
    ledger = Ledger(storage, "test")
    assert lost_outputs(ledger, planned) == {} and all(ledger.is_done(unit) for unit in planned)
