"""Segments on Ray: counts add up with poison among the units, and a lost worker costs its segment a repeat."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.units import executor
from orchestration.units.executor import RetrySettings, run_units
from orchestration.units.ledger import Ledger, quarantined, release
from orchestration.units.segment import SEGMENT_FRAMES, in_segments
from orchestration.units.unit import JobStoppedError, Output, Unit
from talkinghead.files.storage import Storage
from tests.support import poison
from tests.support.segments import JOB, make_unit, records, tars

RETRY = RetrySettings(attempts=2, memory_gb=2.0)


def behave(storage: Storage, unit: Unit) -> Output:
    """A job function that kills its worker, the parent of this process, as often as the payload says."""
    marks = Path(unit.payload["runs"]).parent / "kills"
    if (times := unit.payload.get("kill_worker", 0)) and len(list(marks.glob("*"))) < times:
        (marks / str(os.getpid())).touch()
        os.kill(os.getppid(), signal.SIGKILL)
    return poison.behave(storage, unit)


def killing(folder: Path, key: str, times: int) -> Unit:
    (folder / "kills").mkdir()
    unit = make_unit(folder, key, kill_worker=times)
    return replace(unit, function="tests.orchestration.units.test_executor_segments:behave")


def planned(units: list[Unit], in_each: int) -> list[Unit]:
    """Units in segments of so many, of two shards."""
    units = [replace(unit, frames=SEGMENT_FRAMES // in_each) for unit in units]
    half = len(units) // 2
    shards = {"clips-000000": units[:half], "clips-000001": units[half:]}
    return in_segments(units, {name: [unit.key for unit in part] for name, part in shards.items()})


def test_counts_add_up_with_poison_and_a_killed_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(tmp_path / "data")
    units = [make_unit(tmp_path, f"good{number:02d}") for number in range(12)]
    units[2:2] = [make_unit(tmp_path, "segfault", "segfault"), make_unit(tmp_path, "error", "error")]
    units[9:9] = [make_unit(tmp_path, "reject", "reject"), killing(tmp_path, "unlucky", 1)]
    units = planned(units, 4)
    single = make_unit(tmp_path, "single")  # such as one that was released before
    with Cluster(ClusterSettings(workers=2)) as cluster, caplog.at_level("INFO"):
        tally = run_units(storage, JOB, [*units, single], cluster, RETRY)
        assert (tally.planned, tally.committed, tally.quarantined) == (17, 15, 2)
        assert "quarantined error.mp4: clip.mp4 is not a video (error:ValueError)" in caplog.text
        assert "a worker was lost; another one runs segment-clips-000001" in caplog.text
        ledger = Ledger(storage, JOB)
        assert all(ledger.is_done(unit) for unit in units) and {f.key for f in quarantined(storage)} == {
            "segfault",
            "error",
        }
        assert len(records(storage)) == len(tars(storage)) == 4
        # What the lost worker had begun ran twice, all others once.
        runs = Counter((tmp_path / "runs").read_text().split())
        again = {unit.key for unit in units if unit.segment == next(u.segment for u in units if u.key == "unlucky")}
        assert all(runs[unit.key] == 1 for unit in units if unit.key not in again | {"segfault"})
        assert all(runs[key] <= 2 for key in again) and runs["segfault"] == 2
        # Nothing is left to do; what is released is tried on its own.
        before = {path: storage.read(path) for path in records(storage)}
        tally = run_units(storage, JOB, [*units, single], cluster, RETRY)
        assert (tally.done_before, tally.quarantined_before, tally.committed) == (17, 2, 0)
        release(storage, quarantined(storage), "error:ValueError")
        mended = [
            replace(unit, payload={**unit.payload, "behaviour": "sample"}) if unit.key == "error" else unit
            for unit in units
        ]
        tally = run_units(storage, JOB, mended, cluster, RETRY)
        assert (tally.committed, tally.quarantined) == (1, 0)
        assert {path: storage.read(path) for path in records(storage)} == before


@pytest.mark.slow
def test_workers_that_are_always_lost_stop_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine ends processes: no unit is quarantined, and nothing is committed."""
    monkeypatch.setattr(executor, "MOST_LOSSES", 2)
    storage = Storage(tmp_path / "data")
    units = planned([killing(tmp_path, "unlucky", 9), make_unit(tmp_path, "good")], 4)
    with (
        Cluster(ClusterSettings(workers=1)) as cluster,
        pytest.raises(JobStoppedError, match=r"2 workers were lost, .* segment-clips-00000. \(unlucky\.mp4\)"),
    ):
        run_units(storage, JOB, units, cluster, RETRY)
    assert quarantined(storage) == [] and "unlucky" not in {found.key for found in Ledger(storage, JOB).commits()}
