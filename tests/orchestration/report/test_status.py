"""Status of DATA: every planned unit counts once, speed comes from the records' times, commands say who is at work."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestration import plans
from orchestration.cluster.overview import JobState, NodeState, Overview
from orchestration.command_records import CommandRecord, recorded
from orchestration.report.status import QUIET_S, Status, data_status
from orchestration.units.records import Attempt, QuarantineRecord, RejectedPiece, SampleRecord, UnitRecord
from orchestration.units.segment_records import SegmentRecord, SegmentRow
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import Rejection

NOW = 1_800_000_000.0


def plan(storage: Storage, number: int) -> list[str]:
    keys = [f"folder-{index}" for index in range(number)]
    plans.write_plan(
        storage,
        plans.ingest_plan_name("folder"),
        plans.IngestPlan(units=dict.fromkeys(keys, "p"), contents=dict.fromkeys(keys), settings={}),
    )
    return keys


def commit(
    storage: Storage, key: str, at: float, *, pkey: str = "p", attempts: int = 1, rejected: bool = False
) -> None:
    samples = [] if rejected else [SampleRecord(key=key, num_frames=9, members=[], sha256="0" * 64)]
    pieces = [RejectedPiece(key=key, rejection=Rejection(reason="no_face"))] if rejected else []
    record = UnitRecord(job="ingest", key=key, pkey=pkey, samples=samples, rejected=pieces, attempts=attempts)
    write(storage, dataroot.record("ingest", key, pkey), record.to_json(), at)


def commit_segment(storage: Storage, number: int, keys: list[str], at: float) -> None:
    """Commit units together, in the record of a segment."""
    rows = [
        SegmentRow.of(
            UnitRecord(
                job="ingest",
                key=key,
                pkey="p",
                samples=[SampleRecord(key=key, num_frames=9, members=[], sha256="0" * 64)],
            )
        )
        for key in keys
    ]
    name = f"segment-clips-{number:06d}-000-{number:012x}"
    record = SegmentRecord(
        job="ingest", segment=name, attempt=f"{number:016x}", rows=rows, file_bytes=1, file_sha256="0" * 64
    )
    write(storage, record.path, record.to_parquet(), at)


def fail(storage: Storage, key: str, cause: str, at: float) -> None:
    record = QuarantineRecord(
        job="ingest", key=key, pkey="p", source=key, attempts=[Attempt(cause=cause, message="it failed")]
    )
    write(storage, dataroot.quarantine("ingest", key, "p"), record.to_json(), at)


def write(storage: Storage, path: str, data: bytes, at: float) -> None:
    storage.write(path, data)
    assert storage.local_root is not None
    os.utime(storage.local_root / path, (at, at))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_every_planned_unit_counts_once(storage: Storage) -> None:
    keys = plan(storage, 20)
    for key in keys[:5]:
        commit(storage, key, NOW)
    commit(storage, keys[5], NOW, rejected=True)
    commit(storage, keys[6], NOW, attempts=3)
    fail(storage, keys[7], "timeout", NOW)
    fail(storage, keys[8], "timeout", NOW)
    fail(storage, keys[9], "media:no_video", NOW)
    # Units that are not planned so any more, and a record that cannot be read.
    commit(storage, keys[10], NOW, pkey="before")
    commit(storage, "folder-gone", NOW + 100)
    write(storage, dataroot.record("ingest", keys[11], "p"), b"{", NOW)
    (job,) = data_status(storage).jobs
    assert (job.planned, job.done, job.rejected, job.pending, job.unreadable, job.retried) == (20, 6, 1, 10, 1, 1)
    assert job.quarantined == {"timeout": 2, "media:no_video": 1} and job.newest_s == NOW
    text = "\n".join(data_status(storage).lines(NOW))
    assert "quarantined in ingest: 2 timeout" in text and "more than one try: 1" in text


def test_speed_is_that_of_the_last_minutes(storage: Storage) -> None:
    keys = plan(storage, 100)
    for number, key in enumerate(keys[:10]):  # a fast hour, yesterday
        commit(storage, key, NOW - 86_400 + number)
    for number, key in enumerate(keys[10:31]):  # then one every 6 s
        commit(storage, key, NOW - 6 * (20 - number))
    (job,) = data_status(storage).jobs
    assert job.per_minute == pytest.approx(10) and job.left_s == pytest.approx(69 * 6)


def test_units_of_a_segment_count_one_by_one(storage: Storage) -> None:
    """Units that ended together say nothing of their own speed; those after the first time of the window do."""
    keys = plan(storage, 100)
    for number in range(4):  # ten units every 20 minutes, which is longer than the window
        commit_segment(storage, number, keys[10 * number : 10 * number + 10], NOW - 1200 * (3 - number))
    (job,) = data_status(storage).jobs
    assert (job.done, job.pending, job.newest_s) == (40, 60, NOW)
    assert job.per_minute == pytest.approx(0.5) and job.left_s == pytest.approx(2 * 60 * 60)
    commit(storage, keys[40], NOW + 60)
    (job,) = data_status(storage).jobs
    assert job.done == 41 and job.per_minute == pytest.approx(1)


def test_one_record_has_no_speed(storage: Storage) -> None:
    keys = plan(storage, 3)
    (job,) = data_status(storage).jobs
    assert job.per_minute is None and job.left_s is None and job.newest_s is None
    commit(storage, keys[0], NOW)
    (job,) = data_status(storage).jobs
    assert job.per_minute is None and job.left_s is None


def test_time_left_is_told_only_while_a_command_runs(storage: Storage) -> None:
    keys = plan(storage, 40)
    now = time.time()
    for number, key in enumerate(keys[:11]):
        commit(storage, key, now - 10 + number)
    with recorded(storage):
        status = data_status(storage)
        assert status.running(now) is not None and "about 29 s left" in "\n".join(status.lines(now))
        assert status.as_json(now)["running"]
        # Nothing for long: nobody may be there any more.
        later = now + QUIET_S + 1
        text = "\n".join(status.lines(later))
        assert status.running(later) is None and "not running" in text and "it was killed" in text
    text = "\n".join(data_status(storage).lines(now))
    assert "with status 0 (nothing to do)" in text and "not running" in text


def test_a_command_that_gives_signs_of_life_runs_without_records(storage: Storage) -> None:
    """A segment of units may take longer than a command may be silent."""
    (key, *_) = plan(storage, 2)
    commit(storage, key, time.time() - 2 * QUIET_S)
    writer = Storage(storage.location)
    with writer.held(), recorded(writer):
        later = time.time() + QUIET_S - 60
        began = replace(data_status(storage).commands[0], started="2026-01-01T00:00:00Z")
        status = replace(data_status(storage), commands=[began])
        assert status.running(later) is began and replace(status, lease_s=None).running(later) is None
        assert status.running(later + QUIET_S) is None


def test_another_command_gives_no_sign_of_life_for_a_killed_one(storage: Storage) -> None:
    """Whoever holds DATA by now, or held it last."""
    plan(storage, 2)
    writer = Storage(storage.location)
    with writer.held(), recorded(writer):
        status, now = data_status(storage), time.time()
        assert status.running(now) is not None
        [command] = status.commands
        assert replace(status, commands=[replace(command, pid=command.pid + 1)]).running(now) is None
        assert replace(status, commands=[replace(command, host="elsewhere")]).running(now) is None
    assert replace(data_status(storage), commands=[command]).running(now) is None


def test_a_command_that_has_just_begun_runs_before_its_first_record(storage: Storage) -> None:
    plan(storage, 2)
    record = CommandRecord(
        command="x", started=datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        user="u", host="h", pid=1, versions={},
    )  # fmt: skip
    status = replace(data_status(storage), commands=[record])
    assert status.running(NOW + 5) is record and "running as process 1" in "\n".join(status.lines(NOW + 5))
    damaged = replace(status, commands=[replace(record, started="no time")])
    assert damaged.running(NOW) is None


def test_packing_counts_shards(storage: Storage) -> None:
    keys = plan(storage, 4)
    plans.write_plan(storage, plans.SHARD_PLAN, plans.ShardPlan(shards=[keys[:2], keys[2:]], settings={}))
    record = UnitRecord(job=plans.PACK_MEDIA_JOB, key=plans.shard_key(1), pkey="q")
    write(storage, dataroot.record(record.job, record.key, record.pkey), record.to_json(), NOW)
    jobs = {job.job: job for job in data_status(storage).jobs}
    assert (jobs["pack-media"].planned, jobs["pack-media"].done, jobs["pack-media"].pending) == (2, 1, 1)


def test_lost_nodes_are_named() -> None:
    def node(ip: str, why: str = "") -> NodeState:
        return NodeState(ip=ip, is_head=ip == "a", is_alive=not why, why=why, cpus=4.0, gpus=0.0)

    job = JobState(name="ingest-1", job="ingest DATA=/d", status="FAILED", started="then", exit_status=2)
    nodes = [node("a"), node("b"), node("c", "health check failed"), node("c", "health check failed")]
    text = "\n".join(Status(data="/d", jobs=[], cluster=Overview(address="a:1", nodes=nodes, jobs=[job])).lines(NOW))
    assert "2 nodes live (8 CPUs, 0 GPUs), 2 are lost" in text and "lost node c (2 times): health check failed" in text
    assert "ingest-1 (ingest DATA=/d): failed, exit status 2, begun then" in text
    waiting = replace(job, status="PENDING", started=None, exit_status=None)
    text = "\n".join(Status(data="/d", jobs=[], cluster=Overview(address="a:1", nodes=[], jobs=[waiting])).lines(NOW))
    assert text.endswith("job ingest-1 (ingest DATA=/d): pending")


def test_data_without_plans_is_an_error(storage: Storage) -> None:
    with pytest.raises(ValueError, match="nothing is ingested"):
        data_status(storage)
