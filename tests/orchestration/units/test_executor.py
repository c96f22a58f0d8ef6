"""The executor under real crashes, hangs, memory exhaustion and write failures."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.units.executor import RetrySettings, Tally, run_units
from orchestration.units.frame_reports import FrameWatch, noting, reporting
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
        # Alone it has four times as long, in which a process of its own starts on a busy machine, too: it is to hang
        # before its time is up.
        time_limit_s=4.0 if behaviour == "hang" else 240.0,
    )


def run(storage: Storage, units: list[Unit], retry: RetrySettings = RETRY) -> Tally:
    with Cluster(ClusterSettings(workers=2)) as cluster:
        return run_units(storage, "test", units, cluster, retry)


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


def test_a_time_limit_is_never_tried_twice(tmp_path: Path) -> None:
    """What is only slow gets through alone, in a longer time; what hangs there too is given up, with advice."""
    storage = Storage(tmp_path / "data")
    slow = replace(make_unit(tmp_path, "slow", "sample", sleep=9.0), time_limit_s=8.0)
    stuck = make_unit(tmp_path, "stuck", "hang")
    tally = run(storage, [slow, stuck], RetrySettings(attempts=5, memory_gb=2.0))
    assert (tally.committed, tally.quarantined) == (1, 1)
    assert Counter((tmp_path / "runs").read_text().split()) == {"slow": 2, "stuck": 2}
    (record,) = quarantined(storage)
    assert [(attempt.cause, attempt.alone) for attempt in record.attempts] == [("timeout", False), ("timeout", True)]
    assert record.attempts[0].message == "took longer than 4 s"
    assert record.attempts[1].message == (
        "took longer than 16 s; if it is not stuck but long: make retry CAUSE=timeout, then again with"
        " ARGS='--time-limit-s 16'"
    )


def test_one_try_alone_says_what_to_do(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    run(storage, [make_unit(tmp_path, "stuck", "hang")], RetrySettings(attempts=1, memory_gb=2.0))
    (record,) = quarantined(storage)
    assert record.attempts[0].message.startswith("took longer than 4 s; if it is not stuck")
    assert record.attempts[0].message.endswith("ARGS='--time-limit-s 4'")


@pytest.mark.parametrize("alone", [False, True])
def test_a_long_unit_shows_how_far_it_is(alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the only unit runs, its frames are told; in the pool, and alone after a crash."""
    seen = tmp_path / "seen"
    payload = {"seen": str(seen)} | ({"crash_first": str(tmp_path / "crashed")} if alone else {})
    unit = replace(make_unit(tmp_path, "long", "frames", **payload), frames=1_000_000)
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)

        def look() -> None:
            while not seen.exists():
                time.sleep(0.2)
                if "frames/s, about" in (tmp_path / "stderr").read_text():
                    seen.touch()

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        tally = run(Storage(tmp_path / "data"), [unit])
        told = (tmp_path / "stderr").read_text()
        seen.touch()
        watcher.join()
    assert tally.committed == 1
    assert re.search(r"test: 0/1, [1-9][0-9,]* frames, [0-9]+ frames/s, about .* left", told)


def test_a_lost_board_costs_nothing(tmp_path: Path) -> None:
    with Cluster(ClusterSettings(workers=1)) as cluster:
        assert cluster.slots == 1
        import ray

        watch = FrameWatch(ray)
        with noting(watch.board, "unit") as tell, reporting(tell):
            assert tell is not None
            tell(7)
            while watch.frames != {"unit": 7}:
                watch.look()
            ray.kill(watch.board)
            for number in range(50):
                tell(number)
                watch.look()
        assert watch.frames == {"unit": 7}, "as last heard"


def test_the_longest_unit_begins_first(tmp_path: Path) -> None:
    units = [
        replace(make_unit(tmp_path, f"unit{number}", "sample"), frames=frames)
        for number, frames in enumerate([10, 0, 70, 30, 1400, 20])
    ]
    with Cluster(ClusterSettings(workers=1)) as cluster:
        run_units(Storage(tmp_path / "data"), "test", units, cluster, RETRY)
    assert (tmp_path / "runs").read_text().split() == ["unit4", "unit2", "unit3", "unit5", "unit0", "unit1"]


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
