"""Faults of a job function: one of the machine stops the job, one of the input goes on its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.units.alone import run_alone
from orchestration.units.executor import RetrySettings, run_units
from orchestration.units.ledger import quarantined
from orchestration.units.records import UnitRecord
from orchestration.units.segment import Segment
from orchestration.units.segment_worker import run_segment
from orchestration.units.unit import JobStoppedError, Unit, run_unit
from talkinghead.files.s3_files import RefusedError
from talkinghead.files.storage import Storage
from tests.support import poison
from tests.support.mains import make_unreadable


def make_unit(tmp_path: Path, behaviour: str, **payload: object) -> Unit:
    return Unit(
        job="test",
        key=behaviour,
        pkey="0123456789abcdef",
        function="tests.support.poison:behave",
        payload={"behaviour": behaviour, "runs": str(tmp_path / "runs"), **payload},
        source=f"{behaviour}.mp4",
        time_limit_s=60.0,
    )


@pytest.fixture
def failing(tmp_path: Path) -> Unit:
    """A unit whose input lies on a disk that fails."""
    return make_unit(tmp_path, "read", file=str(make_unreadable(tmp_path / "clip.mp4")))


def test_an_io_error_is_the_machines(failing: Unit, tmp_path: Path) -> None:
    """In this process, and alone in a child."""
    storage = Storage(tmp_path / "data")
    said = "the machine failed while working on read.mp4: Input/output error"
    with pytest.raises(JobStoppedError, match=said):
        run_unit(storage, failing, attempts=1)
    with pytest.raises(JobStoppedError, match=said):
        run_alone(storage, failing, attempts=2, memory_gb=2.0)


def test_an_explained_io_error_is_the_machines_too(failing: Unit, tmp_path: Path) -> None:
    """A job that says "cannot be read" of it blames the input in vain."""
    unit = make_unit(tmp_path, "explain", file=failing.payload["file"])
    with pytest.raises(JobStoppedError, match=r"the machine failed while working on explain\.mp4: .* cannot be read"):
        run_unit(Storage(tmp_path / "data"), unit, attempts=1)


def test_the_job_stops_and_quarantines_nothing(failing: Unit, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "data")
    with Cluster(ClusterSettings(workers=1)) as cluster, pytest.raises(JobStoppedError, match="Input/output error"):
        run_units(storage, "test", [failing], cluster, RetrySettings(attempts=2, memory_gb=2.0))
    assert not list(quarantined(storage))
    assert (tmp_path / "runs").read_text().split() == ["read"], "it is not tried again in vain"


def test_a_node_that_cannot_write_conditionally_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one without boto3, whose units would all be quarantined by the others."""

    def refuse(*_: object) -> bool:
        raise RefusedError("conditional writes need boto3")

    monkeypatch.setattr(Storage, "create", refuse)
    storage, unit = Storage(tmp_path / "data"), make_unit(tmp_path, "sample")
    with pytest.raises(JobStoppedError, match="need boto3"):
        run_unit(storage, unit, attempts=1)
    with pytest.raises(JobStoppedError, match="need boto3"):
        run_segment(storage, Segment(job=unit.job, name="segment-a-000-0", units=(unit,)), RetrySettings())
    monkeypatch.setattr(poison, "behave", refuse)  # as packing does, which stores its output itself
    with pytest.raises(JobStoppedError, match="need boto3"):
        run_unit(storage, unit, attempts=1)


def test_a_machine_that_starts_no_process_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    with pytest.raises(JobStoppedError, match=r"a worker cannot start a process: .*nothing"):
        run_alone(Storage(tmp_path / "data"), make_unit(tmp_path, "sample"), attempts=1, memory_gb=2.0)


def test_a_unit_alone_is_refused_under_an_epoch_that_is_over(tmp_path: Path) -> None:
    """Its child has the epoch, too."""
    storage, late = Storage(tmp_path / "data"), Storage(tmp_path / "data")
    with storage.held():
        late.epoch = storage.epoch
        unit = make_unit(tmp_path, "sample")
        assert isinstance(run_alone(late, unit, attempts=1, memory_gb=2.0), UnitRecord)
    before = [file.path for file in storage.list("records")]
    with storage.held(), pytest.raises(JobStoppedError, match="another command has taken over"):
        run_alone(late, replace(unit, key="other"), attempts=1, memory_gb=2.0)
    assert [file.path for file in storage.list("records")] == before and len(storage.list("units")) == 1


@pytest.mark.parametrize("file", ["missing.mp4", "."])
def test_a_missing_or_wrong_file_is_the_inputs(file: str, tmp_path: Path) -> None:
    unit = make_unit(tmp_path, "read", file=str(tmp_path / file))
    with pytest.raises((FileNotFoundError, IsADirectoryError)):
        run_unit(Storage(tmp_path / "data"), unit, attempts=1)
