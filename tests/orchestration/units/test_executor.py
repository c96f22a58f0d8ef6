"""The executor under real crashes, hangs, memory exhaustion and write failures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.units.executor import RetrySettings, Tally, run_units
from orchestration.units.ledger import Ledger, causes, quarantined, release, writer_lock
from orchestration.units.records import QuarantineRecord, UnitRecord
from orchestration.units.unit import Unit
from talkinghead.files.storage import Storage

RETRY = RetrySettings(attempts=2, memory_gb=2.0)


def make_unit(tmp_path: Path, key: str, behaviour: str, **payload: object) -> Unit:
    return Unit(
        job="test",
        key=key,
        pkey="0123456789abcdef",
        function="tests.support.poison:behave",
        payload={"behaviour": behaviour, "runs": str(tmp_path / "runs"), **payload},
        source=f"{key}.mp4",
        # What hangs is to hang before its time is up, on a busy machine too: a process of its own starts in seconds.
        time_limit_s=12.0 if behaviour == "hang" else 240.0,
    )


def run(storage: Storage, units: list[Unit]) -> Tally:
    with Cluster(ClusterSettings(workers=2)) as cluster:
        return run_units(storage, "test", units, cluster, RETRY)


def test_every_unit_ends_once_and_poison_harms_no_neighbour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(tmp_path / "data")
    poison = ["segfault", "killed", "hang", "memory", "error"]
    units = [make_unit(tmp_path, f"good{i:02d}", "sample", sleep=0.05) for i in range(20)]
    units += [make_unit(tmp_path, name, name) for name in poison]
    units += [make_unit(tmp_path, "refused", "reject")]
    units += [make_unit(tmp_path, "unlucky", "crash_once", marker=str(tmp_path / "marker"))]
    units.sort(key=lambda unit: unit.key[::-1])

    tally = run(storage, units)

    assert (tally.committed, tally.quarantined) == (22, 5)
    results = Ledger(storage, "test").results((unit.key, unit.pkey) for unit in units)
    assert all(results.values())
    assert {key for key, result in results.items() if isinstance(result, QuarantineRecord)} == set(poison)
    refused = results["refused"]
    assert isinstance(refused, UnitRecord) and refused.rejected[0].rejection.reason == "no_face"
    unlucky = results["unlucky"]
    assert isinstance(unlucky, UnitRecord) and unlucky.attempts == 2
    found = {record.key: record.cause for record in quarantined(storage)}
    assert found == {
        "segfault": "crash:SIGSEGV",
        "killed": "crash:SIGKILL",
        "hang": "timeout",
        "memory": "memory",
        "error": "error:ValueError",
    }
    hang = next(record for record in quarantined(storage) if record.key == "hang")
    assert "poison.py" in hang.attempts[-1].trace, "the place where it hung is on record"

    # The good neighbours ran exactly once; what says "not a video" is not tried again.
    runs = Counter((tmp_path / "runs").read_text().split())
    assert all(runs[f"good{i:02d}"] == 1 for i in range(20))
    assert runs["error"] == 1
    assert runs["segfault"] == 2

    # A second command has nothing to do, until a cause is released.
    with caplog.at_level("INFO"):
        again = run(storage, units)
    assert (again.done_before, again.committed, again.quarantined) == (27, 0, 0)
    assert (
        again.quarantined_before == 5 and "22 done and 5 quarantined before, 0 done now, 0 quarantined" in caplog.text
    )
    assert [record.key for record in release(storage, quarantined(storage), "crash:SIGKILL")] == ["killed"]
    assert causes(quarantined(storage))["crash:SIGKILL"] == 0
    assert len(storage.list("released", ".json")) == 1
    Path(tmp_path / "runs").unlink()
    third = run(storage, units)
    assert (third.done_before, third.quarantined) == (26, 1)
    assert set((tmp_path / "runs").read_text().split()) == {"killed"}


@pytest.mark.slow
def test_workers_are_pinned_to_one_thread_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.units.executor.UNITS_PER_PROCESS", 2)
    storage = Storage(tmp_path / "data")
    units = [make_unit(tmp_path, f"unit{i}", "threads") for i in range(6)]
    tally = run(storage, units)
    told = []
    assert tally.committed == 6
    for record in Ledger(storage, "test").results((unit.key, unit.pkey) for unit in units).values():
        assert isinstance(record, UnitRecord)
        member = record.samples[0].members[0]
        assert record.file
        told.append(storage.read_range(record.file, member.offset, member.size).decode().split())
    assert {(opencv, openmp) for opencv, openmp, _ in told} == {("1", "1")}
    assert max(Counter(pid for _, _, pid in told).values()) <= 2, "MediaPipe's leak must not add up in one process"


def test_second_writer_is_refused(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with writer_lock(storage), pytest.raises(ValueError, match="another job is writing"), writer_lock(storage):
        pass
    with writer_lock(storage):
        pass


def test_unwritable_target_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot write to"), writer_lock(Storage(tmp_path / "data")):
        pass
