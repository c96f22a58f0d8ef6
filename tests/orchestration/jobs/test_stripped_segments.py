"""Samples that are taken out of segments are in no byte of them, and the others go on as they were."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from annotate.columns import COLUMNS
from orchestration import plans
from orchestration.jobs import derive, derive_worker
from orchestration.jobs.derive import run_derive
from orchestration.jobs.gc import run_gc
from orchestration.jobs.matched import match_person
from orchestration.jobs.remove import run_remove
from orchestration.jobs.stripped_segments import strip_segments
from orchestration.units.segment_records import SegmentRecord, read_segment
from shards.verify import verify
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from tests.support.dying import die_at_writes
from tests.support.latent_data import in_process
from tests.support.removable_data import PERSONS, SAMPLES, build
from tests.support.segments import records, tars
from tests.support.toy_column import ToySettings, toy_column

GONE = {
    key for key, person in zip(SAMPLES, ("Ann", "Ann", "Bob", "Bob", "Cleo", "Dan"), strict=True) if person == "Ann"
}
ANN = PERSONS[0]


class StoppedError(Exception):
    """The command was ended when all units were done, before they were packed."""


def derive_toy(storage: Storage) -> str:
    return run_derive(in_process(storage), toy_column(), ToySettings(scale=3.0))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """DATA whose column is made and not packed; not to be changed."""
    storage = build(tmp_path_factory.mktemp("half") / "data")

    def stop(*arguments: object) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COLUMNS, "toy", toy_column())
        patch.setattr(derive, "pack_columns", stop)
        derive_worker._last.clear()
        with pytest.raises(StoppedError):
            derive_toy(storage)
    assert len(tars(storage)) == 3
    return storage


@pytest.fixture
def data(half: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    assert half.local_root
    monkeypatch.setitem(COLUMNS, "toy", toy_column())
    derive_worker._last.clear()
    return Storage(shutil.copytree(half.local_root, tmp_path / "data"))


def remove_ann(storage: Storage) -> None:
    run_remove(storage, match_person(storage, ANN), lambda run, keys: (0, 0))


def segments(storage: Storage) -> list[SegmentRecord]:
    found = [dataroot.segment_of_record(path) for path in records(storage)]
    return [read_segment(storage, *names) for names in found if names]


def check_gone(storage: Storage) -> None:
    """No tar of a segment, no record and no plan of the column names a removed sample; each names what is there."""
    assert tars(storage) == sorted(
        record.file for record in segments(storage) if record.file and record.file in tars(storage)
    )
    for path in tars(storage):
        assert not any(key.encode() in storage.read(path) for key in GONE)
    for record in segments(storage):
        assert GONE.isdisjoint(row.key for row in record.rows)
        for unit in record.units().values() if record.file in tars(storage) else ():
            assert record.file and hash_bytes(storage.read(record.file)) == record.file_sha256
            [sample] = unit.samples
            head = min(member.offset for member in sample.members) - 512
            end = max(member.offset + member.size + -member.size % 512 for member in sample.members)
            assert hash_bytes(storage.read_range(record.file, head, end - head)) == sample.sha256
    for name in plans.plan_names(storage, *plans.COLUMN_PREFIXES):
        plan = plans.find_plan(storage, name)
        assert isinstance(plan, plans.ColumnPlan) and GONE.isdisjoint(plan.units) and GONE.isdisjoint(plan.segments)


def shards(storage: Storage, version: str) -> dict[str, str]:
    return {file.path: hash_bytes(storage.read(file.path)) for file in storage.list(f"ann/{version}")}


def test_a_person_is_gone_from_a_half_made_column_which_goes_on(data: Storage, half: Storage, tmp_path: Path) -> None:
    assert any(key.encode() in data.read(path) for path in tars(data) for key in GONE)
    remove_ann(data)
    check_gone(data)
    made = {row.key for record in segments(data) for row in record.rows}
    assert made == set(SAMPLES) - GONE, "nothing of the others is lost"
    version = derive_toy(data)
    # As where nothing had been made before the removal.
    assert half.local_root
    other = Storage(shutil.copytree(half.local_root, tmp_path / "other"))
    for path in (*tars(other), *records(other)):
        other.delete(path)
    remove_ann(other)
    assert derive_toy(other) == version and shards(other, version) == shards(data, version) != {}
    for storage in (data, other):
        run_gc(storage)
        check_gone(storage)
        assert verify(storage, deep=True).problems == []


def test_a_packed_column_loses_its_rows(data: Storage) -> None:
    derive_toy(data)
    assert tars(data) == [] and any(row.key in GONE for record in segments(data) for row in record.rows)
    remove_ann(data)
    check_gone(data)


def test_what_a_late_worker_commits_after_the_removal_goes_with_gc(data: Storage, half: Storage) -> None:
    remove_ann(data)
    unpacked = (record for record in segments(half) if record.file in tars(half))
    late = next(record for record in unpacked if any(row.key in GONE for row in record.rows))
    assert late.file
    data.write(late.file, half.read(late.file))
    data.write(late.path, half.read(late.path))
    run_gc(data)
    check_gone(data)


def test_a_damaged_record_goes_with_its_tar(data: Storage) -> None:
    first = segments(data)[0]
    data.write(first.path, b"damaged")
    remove_ann(data)
    check_gone(data)
    assert first.path not in records(data)
    derive_toy(data)
    assert verify(data).ok


def test_a_kill_between_any_two_steps(half: Storage, tmp_path: Path) -> None:
    assert half.local_root
    copies = [Path(shutil.copytree(half.local_root, tmp_path / str(number))) for number in range(1, 4)]
    setup = "from orchestration.jobs.stripped_segments import strip_segments"
    gone = sorted(GONE)
    ends = die_at_writes(copies, setup=setup, work=f"strip_segments(Storage(folder), set({gone}).__contains__)")
    assert ends[0] == -signal.SIGKILL
    for folder in copies:
        storage = Storage(folder)
        storage.sweep_temporary()
        strip_segments(storage, GONE.__contains__)
        for path in tars(storage):
            assert not any(key.encode() in storage.read(path) for key in GONE)
        made = {row.key for record in segments(storage) for row in record.rows}
        named = {record.file for record in segments(storage)}
        assert made == set(SAMPLES) - GONE and named >= set(tars(storage)) != set()
