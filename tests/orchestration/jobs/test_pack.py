"""Packing a shard where another one, or the same, lies already; and which of several records of it counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration import outcomes, plans
from orchestration.jobs import pack
from orchestration.jobs.pack import plan_pack
from orchestration.units.output_tar import OutputChangedError
from orchestration.units.records import SampleRecord, UnitRecord
from orchestration.units.unit import Output, Unit, run_unit, store_output
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data" if request.param == "local" else request.getfixturevalue("s3").uri(tmp_path.name))


def part(storage: Storage, key: str, content: bytes) -> pack.Part:
    """A sample that is to be packed."""
    unit = Unit(job="ingest", key=key, pkey="0" * 16, function="", payload={}, source=key, time_limit_s=1.0)
    record = store_output(storage, unit, Output(contents=[(key, 3, {"json": content})]))
    return pack._part(record, record.samples[0])


def test_a_shard_without_its_record_is_taken_as_it_is(storage: Storage) -> None:
    """Of a worker that was killed between the two: nothing is written again."""
    unit = plan_pack(None, 0, [part(storage, "a", b"{}")], None)
    first = pack.run(storage, unit)
    info = Path(storage.describe("clips-000000.tar")).stat() if storage.local_root else None
    second = pack.run(storage, unit)
    assert first.stored == second.stored
    if info is not None:
        assert Path(storage.describe("clips-000000.tar")).stat() == info


def test_another_shard_is_never_replaced(storage: Storage) -> None:
    """Of a driver that has taken over, with other settings, since this worker has begun."""
    late = plan_pack(None, 0, [part(storage, "a", b"{}")], None)
    run_unit(storage, plan_pack(None, 0, [part(storage, "b", b"{}")], None), attempts=1)
    there = storage.read("clips-000000.tar")
    with pytest.raises(OutputChangedError, match=r"clips-000000\.tar"):
        run_unit(storage, late, attempts=1)
    assert storage.read("clips-000000.tar") == there
    assert len(storage.list(dataroot.records("pack-media"))) == 1


def test_what_a_late_worker_has_written_meanwhile_goes(storage: Storage) -> None:
    """It was taken over while it wrote, so it has no record: the driver that has taken over packs its own."""
    units = [plan_pack(None, 0, [part(storage, key, b"{}")], None) for key in ("a", "b")]
    late = pack.run(storage, units[0]).stored
    record = run_unit(storage, units[1], attempts=1)
    assert late is not None and late.file_sha256 != record.file_sha256
    assert hash_bytes(storage.read("clips-000000.tar")) == record.file_sha256


def test_what_no_record_and_no_reader_knows_is_removed_before_packing(storage: Storage) -> None:
    units = [plan_pack(None, number, [part(storage, f"key{number}", b"{}")], None) for number in range(2)]
    run_unit(storage, units[0], attempts=1)
    pack.run(storage, units[1])
    storage.write("clips-000007.tar", b"of somebody")
    pack._remove_unfinished(storage, plans.PACK_MEDIA_JOB, units)
    assert [storage.exists(f"clips-00000{number}.tar") for number in (0, 1, 7)] == [True, False, True]


def test_of_two_records_of_a_shard_the_newer_epoch_counts(storage: Storage) -> None:
    """Whatever their provenance keys: a driver that was stopped in the moment of its commit."""
    for pkey, epoch in (("1" * 16, 3), ("2" * 16, None), ("0" * 16, 12), ("3" * 16, 9)):
        details = {} if epoch is None else {outcomes.EPOCH: epoch}
        record = UnitRecord(
            job="pack-media",
            key="clips-000000",
            pkey=pkey,
            file="clips-000000.tar",
            file_sha256="0" * 64,
            details=details,
        )
        storage.create(dataroot.record(record.job, record.key, record.pkey), record.to_json())
    assert outcomes.pack_records(storage, "pack-media")["clips-000000"].pkey == "0" * 16


def test_a_record_says_under_which_epoch_it_was_written(storage: Storage) -> None:
    unit = plan_pack(None, 0, [part(storage, "a", b"{}")], None)
    with storage.held():
        assert run_unit(storage, unit, attempts=1).details[outcomes.EPOCH] == storage.epoch == 1
    other = replace(unit, key="clips-000001", payload=unit.payload | {"name": "clips-000001.tar"})
    assert outcomes.EPOCH not in run_unit(storage, other, attempts=1).details


def test_the_plan_is_read_once_for_all_rows_of_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a row for every sample, so reading it for each that failed would take as long as the square of them."""
    storage, reads = Storage(tmp_path), []
    find = plans.find_annotate
    monkeypatch.setattr(plans, "find_annotate", lambda *arguments: reads.append(arguments) or find(*arguments))
    with pytest.raises(ValueError, match="has no plan of annotation version v1: run make annotate"):
        pack._blank_rows(storage, "v1", {})("a", None)
    plan = plans.AnnotatePlan(units={}, settings={"engine": "tasks"}, model="face", model_sha256="0" * 64, order=0)
    plans.write_plan(storage, plans.annotate_job("v1"), plan)
    reads.clear()
    ingested = {}
    for key in ("a", "b"):
        record = UnitRecord(job="ingest", key=key, pkey="0" * 16)
        sample = SampleRecord(key=key, num_frames=3, members=[], sha256="0" * 64)
        ingested[key] = outcomes.IngestedSample(record=record, sample=sample)
    blank = pack._blank_rows(storage, "v1", ingested)
    assert reads == [], "nothing has failed yet"
    assert [blank(key, None).samples[0].num_frames for key in ("a", "b")] == [3, 3] and len(reads) == 1
