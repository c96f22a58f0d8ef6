"""The ledger of a DATA that may be a stranger's, and the lock of its writer."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.units.ledger import Ledger, quarantined, release, writer_lock
from orchestration.units.records import RECORD_BYTES, Attempt, QuarantineRecord, UnitRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.foreign import LinkError
from talkinghead.files.storage import Storage
from tests.support.paths import ROOT

PKEY = "0123456789abcdef"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """With a committed and a quarantined unit."""
    storage = Storage(tmp_path / "data")
    storage.create(dataroot.record("ingest", "a", PKEY), UnitRecord(job="ingest", key="a", pkey=PKEY).to_json())
    storage.create(dataroot.quarantine("ingest", "b", PKEY), failed("b").to_json())
    return storage


def failed(key: str, job: str = "ingest") -> QuarantineRecord:
    attempt = Attempt(cause="timeout", message="too long")
    return QuarantineRecord(job=job, key=key, pkey=PKEY, source=f"{key}.mp4", attempts=[attempt])


def test_only_records_with_names_of_ours_count(storage: Storage) -> None:
    root = storage.local_root
    assert root is not None
    folder = root / dataroot.record("ingest", "a", PKEY)
    for name in ("notes.json", "a.b.c.json", "a b.c.json", f"ü.{PKEY}.json", "..json"):
        (folder.parent / name).write_text("no record")
        (root / "quarantine" / "ingest" / name).write_text("no record")
    os.mkfifo(folder.parent / f"c.{PKEY}.json")
    ledger = Ledger(storage, "ingest")
    assert (ledger.committed, ledger.quarantined) == ({("a", PKEY)}, {("b", PKEY)})
    found = ledger.results([("a", PKEY), ("b", PKEY), ("c", PKEY)])
    assert isinstance(found["a"], UnitRecord) and isinstance(found["b"], QuarantineRecord) and found["c"] is None
    assert [record.key for record in quarantined(storage)] == ["b"]


def test_all_commits_of_a_key_are_given(storage: Storage) -> None:
    """Also those that no plan names any more; one that cannot be read is noted."""
    other = UnitRecord(job="ingest", key="a", pkey="f" * 16)
    storage.create(dataroot.record("ingest", "a", other.pkey), other.to_json())
    broken = dataroot.record("ingest", "c", PKEY)
    storage.create(broken, b"{")
    ledger = Ledger(storage, "ingest")
    assert [(record.key, record.pkey) for record in ledger.commits()] == [("a", PKEY), ("a", other.pkey)]
    assert set(ledger.unreadable) == {broken}


def test_a_unit_is_done_when_committed_or_quarantined_under_its_own_provenance(storage: Storage) -> None:
    def unit(key: str, pkey: str = PKEY) -> Unit:
        return Unit(
            job="ingest", key=key, pkey=pkey, function="none:none", payload={}, source=f"{key}.mp4", time_limit_s=1.0
        )

    ledger = Ledger(storage, "ingest")
    assert [ledger.is_done(unit(key)) for key in "abc"] == [True, True, False]
    assert not ledger.is_done(unit("a", pkey="f" * 16)), "made of other inputs"


def test_no_release_is_forgotten(storage: Storage) -> None:
    for number in range(3):
        assert [record.key for record in release(storage, quarantined(storage))] == ["b"]
        assert quarantined(storage) == [] and storage.exists(dataroot.released("ingest", "b", PKEY, number))
        storage.create(dataroot.quarantine("ingest", "b", PKEY), failed("b").to_json())
    assert not release(storage, quarantined(storage), cause="memory") and len(quarantined(storage)) == 1


def test_the_lock_makes_the_folder(tmp_path: Path) -> None:
    with writer_lock(Storage(tmp_path / "new" / "data")):
        assert (tmp_path / "new" / "data").is_dir()


def test_versions_with_the_same_keys_are_told_apart(storage: Storage) -> None:
    for version in ("v1", "v2"):
        record = failed("b", f"annotate-{version}")
        storage.create(dataroot.quarantine(record.job, "b", PKEY), record.to_json())
    assert [record.job for record in quarantined(storage)] == ["annotate-v1", "annotate-v2", "ingest"]


@pytest.mark.parametrize("key", ["b", "../../outside", "a/b"])
def test_a_record_of_another_unit_than_its_name_says_does_not_count(
    key: str, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Its content would lead `release` to other places."""
    storage.write(dataroot.quarantine("ingest", "c", PKEY), failed(key).to_json())
    with caplog.at_level(logging.WARNING):
        assert [record.key for record in quarantined(storage)] == ["b"]
    assert f"c.{PKEY}.json is the record of another unit, ingest {key}" in caplog.text
    path = dataroot.record("ingest", "a", PKEY)
    storage.write(path, UnitRecord(job="ingest", key=key, pkey=PKEY).to_json())
    ledger = Ledger(storage, "ingest")
    assert ledger.results([("a", PKEY)]) == {"a": None}
    assert f"a.{PKEY}.json is the record of another unit" in ledger.unreadable[path]


def test_a_huge_or_deep_record_is_set_aside_with_one_line(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    unit = Unit(job="ingest", key="a", pkey=PKEY, function="", payload={}, source="a.mp4", time_limit_s=1.0)
    path = dataroot.record("ingest", "a", PKEY)
    for number, said in enumerate(("nested too deeply", "too large for a record")):
        storage.write(path, b"[" * 200_000)
        if number:
            with Path(storage.describe(path)).open("wb") as stream:
                stream.truncate(RECORD_BYTES + 1)
        size = storage.size(path)
        ledger = Ledger(storage, "ingest")
        with caplog.at_level(logging.WARNING):
            assert ledger.is_done(unit) and ledger.set_aside_unreadable([unit]) == {}
        assert said in caplog.messages[-1] and "\n" not in caplog.messages[-1]
        assert not ledger.is_done(unit) and not Ledger(storage, "ingest").is_done(unit)
        assert not storage.exists(path) and storage.size(dataroot.damaged(path, number)) == size


@pytest.mark.parametrize("folder", ["released", "quarantine", "quarantine/ingest"])
def test_a_release_goes_through_no_link(folder: str, storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    [record] = quarantined(storage)
    place = Path(storage.describe(folder))
    if place.exists():
        place.rename(outside / "moved")
    place.symlink_to(outside / "moved")
    (outside / "moved").mkdir(exist_ok=True)
    before = sorted(path.name for path in outside.rglob("*"))
    with pytest.raises(LinkError, match=f"{place} is a link"):
        release(storage, [record])
    assert sorted(path.name for path in outside.rglob("*")) == before


def test_the_lock_names_its_holder_and_sweeps_our_own_leftovers(storage: Storage, tmp_path: Path) -> None:
    code = (
        "import sys, time; from orchestration.units.ledger import writer_lock\n"
        "from talkinghead.files.storage import Storage\n"
        "with writer_lock(Storage(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    arguments = [sys.executable, "-c", code, storage.uri]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        said = rf"another job is writing to {storage.uri} \(process {process.pid} on .*\); wait for it or stop it"
        with pytest.raises(ValueError, match=said), writer_lock(storage):
            pass
    finally:
        process.kill()
        process.wait()
    (tmp_path / "data" / "tmp" / ("0" * 32)).touch()
    (tmp_path / "data" / "tmp" / "notes").touch()
    with writer_lock(storage):
        assert [path.name for path in (tmp_path / "data" / "tmp").iterdir()] == ["notes"]
        (tmp_path / "data" / "tmp" / ("1" * 32)).write_bytes(b"by a worker that the watchdog killed")
    assert [path.name for path in (tmp_path / "data" / "tmp").iterdir()] == ["notes"]


@pytest.mark.parametrize("name", ["lease", "tmp"])
def test_a_lock_or_a_scratch_folder_that_is_a_link_is_refused(name: str, storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / ("0" * 32)).write_text("precious")
    (outside / ("0" * 32)).write_text("precious")
    place = tmp_path / "data" / name
    if name == "tmp":
        place.rmdir()
    place.symlink_to(outside)
    with pytest.raises(LinkError, match=f"{place} is a link"), writer_lock(storage):
        pass
    assert [path.read_text() for path in outside.rglob("*") if path.is_file()] == ["precious", "precious"]


def test_a_strangers_data_is_written_with_a_warning(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    assert storage.local_root is not None
    with caplog.at_level(logging.WARNING), writer_lock(storage):
        assert not caplog.records
    os.chown(storage.local_root, 54321, -1)
    with caplog.at_level(logging.WARNING), writer_lock(storage):
        assert "belongs to another user (54321)" in caplog.text
