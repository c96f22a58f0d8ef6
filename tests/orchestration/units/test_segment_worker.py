"""A worker of segments under real crashes, hangs, memory exhaustion, kills and full disks."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.units import segment_worker
from orchestration.units.ledger import Ledger, quarantined
from orchestration.units.retry import RetrySettings
from orchestration.units.segment import Segment
from orchestration.units.segment_records import read_segment
from orchestration.units.segment_worker import run_segment
from orchestration.units.unit import JobStoppedError, Output, Unit
from talkinghead.files.storage import Storage
from tests.support.paths import ROOT
from tests.support.segments import JOB, make_unit, records, segment_of, tars

RETRY = RetrySettings(attempts=2, memory_gb=2.0)
GONE = 20.0  # seconds in which the kernel ends a process whose parent has died


def outcomes(storage: Storage, segment: Segment) -> dict[str, tuple[str, str | None, int]]:
    rows = read_segment(storage, segment.job, segment.name).rows
    assert [row.key for row in rows] == [unit.key for unit in segment.units]
    return {row.key: (row.outcome, row.reason, row.attempts) for row in rows}


def runs(folder: Path) -> Counter[str]:
    return Counter((folder / "runs").read_text().split())


def test_poison_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    """Whatever it does, the segment commits with the others, each computed once; the poison is tried alone."""
    storage = Storage(tmp_path / "data")
    poison = {
        "segfault": ("quarantined", "crash:SIGSEGV", 2),
        "killed": ("quarantined", "crash:SIGKILL", 2),
        "hang": ("quarantined", "timeout", 2),
        "memory": ("quarantined", "memory", 2),
        "error": ("quarantined", "error:ValueError", 1),
        "reject": ("rejected", "no_face", 1),
    }
    units = []
    for number, behaviour in enumerate(poison):
        units += [make_unit(tmp_path, f"good{number}"), make_unit(tmp_path, behaviour, behaviour)]
    units.append(make_unit(tmp_path, "unlucky", "crash_once", marker=str(tmp_path / "marker")))
    units.append(make_unit(tmp_path, "last"))
    segment = segment_of(units)
    told: list[int] = []
    record, failed = run_segment(storage, segment, RETRY, tell=told.append)

    good = dict.fromkeys(("last", *(f"good{number}" for number in range(len(poison)))), ("sample", None, 1))
    assert outcomes(storage, segment) == {**poison, **good, "unlucky": ("alone", None, 2)}
    assert {key: attempt.cause for key, attempt in failed.items()} == {
        key: reason for key, (outcome, reason, _) in poison.items() if outcome == "quarantined"
    }
    assert {found.key: found.cause for found in quarantined(storage)} == {
        key: attempt.cause for key, attempt in failed.items()
    }
    hang = next(found for found in quarantined(storage) if found.key == "hang")
    assert [(attempt.cause, attempt.alone) for attempt in hang.attempts] == [("timeout", False), ("timeout", True)]
    assert "poison.py" in hang.attempts[-1].trace, "the place where it hung is on record"
    assert told == sorted(told) and told[-1] <= 3 * len(units)

    # Each good one ran once; all are there, whole.
    counts = runs(tmp_path)
    assert all(counts[key] == 1 for key in good) and counts["error"] == 1 and counts["segfault"] == 2
    ledger = Ledger(storage, JOB)
    assert all(ledger.is_done(unit) for unit in units)
    for key in good:
        made = ledger.results([(key, units[0].pkey)])[key]
        assert made is not None and made == record.units()[key, units[0].pkey]
        [member] = made.samples[0].members  # pyright: ignore[reportAttributeAccessIssue]
        assert storage.read_range(record.file or "", member.offset, member.size) == key.encode() * 100
    assert tars(storage) == [record.file] and storage.list("tmp") == []
    # The same call once more is answered from the record.
    assert run_segment(storage, segment, RETRY) == (record, {}) and runs(tmp_path) == counts


def test_who_was_only_near_a_crash_is_not_blamed(tmp_path: Path) -> None:
    """A unit that ends the process while it is read ahead: the one that was computed then is made alone. Also where
    one failure is enough for a quarantine."""
    storage = Storage(tmp_path / "data")
    units = [make_unit(tmp_path, f"good{number}", module="eager") for number in range(4)]
    units.insert(2, make_unit(tmp_path, "poison", module="eager", crash_ahead=True))
    segment = segment_of(units)
    run_segment(storage, segment, RetrySettings(attempts=1, memory_gb=2.0))
    assert outcomes(storage, segment) == {
        "good0": ("sample", None, 1),
        "good1": ("alone", None, 2),
        "poison": ("quarantined", "crash:SIGKILL", 1),
        "good2": ("sample", None, 1),
        "good3": ("sample", None, 1),
    }


def test_a_child_is_kept_for_the_segments_that_follow_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_worker, "UNITS_PER_CHILD", 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    storage = Storage(tmp_path / "data")
    pids = []
    for number in range(3):
        units = [make_unit(tmp_path, f"unit{number}-{k}", "threads") for k in range(2)]
        record, _ = run_segment(storage, segment_of(units, f"clips-{number:06d}"), RETRY)
        for unit in record.units().values():
            [member] = unit.samples[0].members
            pids.append(storage.read_range(record.file or "", member.offset, member.size).split()[2])
    assert pids[0] == pids[1] == pids[2] == pids[3] != pids[4] == pids[5]
    assert str(os.getpid()).encode() not in pids, "no input runs in the worker itself"


def test_a_missing_installation_is_the_machines_fault(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    segment = segment_of([make_unit(tmp_path, "unit0", module="nowhere")])
    with pytest.raises(JobStoppedError, match=r"the installation is not complete: .*nowhere"):
        run_segment(storage, segment, RETRY)
    assert records(storage) == [] and tars(storage) == [] and storage.list("tmp") == []


def tell_epoch(storage: Storage, unit: Unit) -> Output:
    """A job function that puts out the epoch under which its process would write."""
    return Output(contents=[(unit.key, 1, {"txt": f"{storage.epoch} {os.getpid()}".encode()})])


def test_a_kept_child_has_the_epoch_of_each_segment(tmp_path: Path) -> None:
    storage, said = Storage(tmp_path / "data"), []
    for number in range(2):
        unit = replace(make_unit(tmp_path, f"unit{number}"), function=f"{__name__}:tell_epoch")
        with storage.held():
            record, _ = run_segment(storage, segment_of([unit], f"clips-{number:06d}"), RETRY)
        [[member]] = [unit.samples[0].members for unit in record.units().values()]
        said.append(storage.read_range(record.file or "", member.offset, member.size).split())
    assert [epoch for epoch, _ in said] == [b"1", b"2"] and said[0][1] == said[1][1]


@pytest.mark.parametrize("behaviour", ["sample", "error", "reject"])
def test_a_worker_that_outlives_the_lease_commits_nothing(tmp_path: Path, behaviour: str) -> None:
    """Neither a record nor a tar, nor a quarantine."""
    storage = Storage(tmp_path / "data")
    with storage.held():
        late = pickle.loads(pickle.dumps(storage))  # noqa: S301  our own bytes
    with storage.held():
        segment = segment_of([make_unit(tmp_path, "unit", behaviour)])
        with pytest.raises(JobStoppedError, match=r"may write to .* no more: another command has taken over"):
            run_segment(late, segment, RETRY)
    assert records(storage) == tars(storage) == [] and quarantined(storage) == [] and storage.list("tmp") == []


def test_what_keeps_a_worker_from_running_units_is_not_said_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/request")

    storage = Storage(tmp_path / "data")
    monkeypatch.setattr(segment_worker, "_Child", full)
    segment_worker._end_child()
    with pytest.raises(JobStoppedError, match="a worker cannot start a process: "):
        run_segment(storage, segment_of([make_unit(tmp_path, "unit")]), RETRY)
    monkeypatch.undo()
    monkeypatch.setattr(segment_worker.tempfile, "TemporaryFile", full)
    monkeypatch.setattr(segment_worker, "_child", lambda *_: segment_worker._Child.__new__(segment_worker._Child))
    monkeypatch.setattr(segment_worker._Child, "limits", (2.0, False, None), raising=False)
    monkeypatch.setattr(segment_worker._Child, "units", 0, raising=False)
    with pytest.raises(JobStoppedError, match="a worker cannot run its units: /tmp/request: No space left"):
        run_segment(storage, segment_of([make_unit(tmp_path, "unit")]), RETRY)


# --- kills and full disks ---------------------------------------------------------------------------------------------

PROGRAM = """
import resource, sys
from pathlib import Path
from orchestration.units.segment_worker import run_segment
from orchestration.units.unit import JobStoppedError
from talkinghead.files.storage import Storage
from tests.orchestration.units.test_segment_worker import RETRY, slow_segment
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    run_segment(Storage(Path(sys.argv[1]) / "data"), slow_segment(Path(sys.argv[1])), RETRY)
except JobStoppedError as error:
    print(error)
"""


def slow_segment(folder: Path) -> Segment:
    """A segment of which a unit waits until there is a file."""
    file = folder / "large"
    units = [make_unit(folder, f"unit{number}", "read", file=str(file)) for number in range(3)]
    units.insert(2, make_unit(folder, "waiting", "frames", seen=str(folder / "seen")))
    return segment_of(units)


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_worker_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """Its child ends with it; the next one does the segment, which is all that is done again."""
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    storage = Storage(tmp_path / "data")
    worker = start(tmp_path)
    while not (tmp_path / "runs").exists() or "waiting" not in (tmp_path / "runs").read_text():
        time.sleep(0.05)
    [child] = children(worker.pid)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + GONE
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child outlives its worker"
        time.sleep(0.05)
    assert tars(storage) == [] and records(storage) == []
    assert storage.sweep_temporary() == 1, "what was complete of it"
    (tmp_path / "seen").touch()
    segment = slow_segment(tmp_path)
    record, _ = run_segment(storage, segment, RETRY)
    assert {row.outcome for row in record.rows} == {"sample"} and tars(storage) == [record.file]
    assert runs(tmp_path) == {"unit0": 2, "unit1": 2, "waiting": 2, "unit2": 1}


def test_a_killed_child_costs_its_unit_alone(tmp_path: Path) -> None:
    """Nothing of what was complete in the file is done again."""
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    worker = start(tmp_path)
    while not (tmp_path / "runs").exists() or "waiting" not in (tmp_path / "runs").read_text():
        time.sleep(0.05)
    [child] = children(worker.pid)
    (tmp_path / "seen").touch()  # the try alone does not wait
    os.kill(child, signal.SIGKILL)
    said, _ = worker.communicate(timeout=240)
    assert said == "" and worker.returncode == 0
    segment = slow_segment(tmp_path)
    made = outcomes(Storage(tmp_path / "data"), segment)
    assert [made[key][0] for key in ("unit0", "unit1", "unit2")] == ["sample"] * 3
    assert runs(tmp_path)["unit0"] == runs(tmp_path)["unit1"] == runs(tmp_path)["unit2"] == 1


def test_a_full_disk_stops_the_job_and_blames_no_unit(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    (tmp_path / "seen").touch()
    worker = start(tmp_path, 400_000)  # the second unit goes beyond
    said, _ = worker.communicate(timeout=240)
    storage = Storage(tmp_path / "data")
    assert said.startswith(f"cannot write to {storage.uri}: ")
    assert tars(storage) == [] and records(storage) == [] and storage.list("tmp") == [] and quarantined(storage) == []
    record, _ = run_segment(storage, slow_segment(tmp_path), RETRY)
    assert {row.outcome for row in record.rows} == {"sample"}
