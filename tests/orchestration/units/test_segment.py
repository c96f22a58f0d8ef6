"""Segments: planned from the plan alone, and committed once, whoever races, is stopped or comes late."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.units.records import RejectedPiece
from orchestration.units.segment import (
    SEGMENT_FRAMES,
    Segment,
    SegmentTar,
    commit_segment,
    grouped,
    in_segments,
)
from orchestration.units.segment_records import SegmentRow, read_segment
from orchestration.units.sweep import sweep, unnamed_tars
from orchestration.units.unit import Output, store_output
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from talkinghead.schema import Rejection
from tests.support.object_store import LocalS3
from tests.support.paths import ROOT
from tests.support.segments import JOB, make_unit, records, segment_of, tars

HERE = Path("/nowhere")


@given(st.lists(st.lists(st.integers(1, 2 * SEGMENT_FRAMES), max_size=12), max_size=4))
def test_segments_are_consecutive_units_of_a_group(groups: list[list[int]]) -> None:
    units = [
        replace(make_unit(HERE, f"unit-{group}-{number}"), frames=frames)
        for group, lengths in enumerate(groups)
        for number, frames in enumerate(lengths)
    ]
    keys = {
        f"clips-{group:06d}": [f"unit-{group}-{n}" for n in range(len(lengths))] for group, lengths in enumerate(groups)
    }
    found = in_segments(units[::-1], keys)[::-1]
    assert [replace(unit, segment="") for unit in found] == units
    names = [unit.segment for unit in found]
    assert all(names) and list(dict.fromkeys(names)) == [
        name for number, name in enumerate(names) if number == 0 or names[number - 1] != name
    ], "consecutive"
    for name in set(names):
        part = [unit for unit in found if unit.segment == name]
        assert len({unit.key.split("-")[1] for unit in part}) == 1
        assert sum(unit.frames for unit in part) <= SEGMENT_FRAMES or len(part) == 1
        assert dataroot.segment_of_record(dataroot.segment_record(JOB, name)) == (JOB, name)
        assert dataroot.segment_of_tar(dataroot.unit(JOB, name, "0" * 16)) == (JOB, name)


def test_other_units_are_another_segment_and_its_neighbours_stay() -> None:
    units = [replace(make_unit(HERE, f"unit{number}"), frames=SEGMENT_FRAMES // 2) for number in range(4)]
    keys = {"clips-000000": [unit.key for unit in units]}
    names = [unit.segment for unit in in_segments(units, keys)]
    assert names[0] == names[1] != names[2] == names[3]
    newer = [*units[:3], replace(units[3], pkey="f" * 16)]
    assert [unit.segment for unit in in_segments(newer, keys)][:2] == names[:2]
    assert in_segments(newer, keys)[2].segment != names[2]
    assert [unit.segment for unit in in_segments(units, {})] == [""] * 4


def test_what_is_pending_of_a_committed_segment_runs_on_its_own() -> None:
    units = [replace(make_unit(HERE, f"unit{number}"), segment=name) for number, name in enumerate("aabb")]
    units.append(make_unit(HERE, "own"))
    segment = Segment(job=JOB, name="a", units=tuple(units[:2]))
    assert grouped(units, {"b": None}) == [*units[2:], segment]
    assert Segment.from_json(segment.to_json()) == segment
    assert segment.frames == 6 and segment.source == "a (unit0.mp4 and 1 more)"


def contents(number: int) -> dict[str, bytes]:
    return {"txt": b"%d" % number * 1000, "bin": bytes([number]) * 700}


def make(scratch: Path, path: str, segment: Segment, storage: Storage) -> tuple[list[SegmentRow], int]:
    """The rows of a segment whose units are samples, one after the other."""
    with SegmentTar(storage, scratch, path) as tar:
        rows = [
            SegmentRow.of(tar.add(unit, Output(contents=[(unit.key, 3, contents(number))])))
            for number, unit in enumerate(segment.units)
        ]
        return rows, tar.end


def commit(storage: Storage, segment: Segment):
    return commit_segment(storage, segment, lambda scratch, path: make(scratch, path, segment, storage))


@pytest.mark.parametrize("remote", [False, True])
def test_a_unit_is_the_same_in_a_segment_and_on_its_own(
    remote: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = Storage(tmp_path)
    if remote:
        server: LocalS3 = request.getfixturevalue("s3")
        storage = Storage(server.uri("segments"))
    segment = segment_of([make_unit(tmp_path, f"unit{number}") for number in range(3)])
    record = commit(storage, segment)
    assert record == read_segment(storage, JOB, segment.name)
    assert tars(storage) == [record.file] and records(storage) == [record.path]
    assert record.file is not None
    data = storage.read(record.file)
    assert (record.file_bytes, record.file_sha256) == (len(data), hash_bytes(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [f"unit{number}.{suffix}" for number in range(3) for suffix in ("txt", "bin")]
    for number, unit in enumerate(segment.units):
        own = store_output(Storage(tmp_path / "own"), unit, Output(contents=[(unit.key, 3, contents(number))]))
        here = record.units()[unit.key, unit.pkey]
        samples = [replace(sample, members=here.samples[0].members) for sample in own.samples]
        assert here == replace(own, file=record.file, samples=samples), "only the place differs"
        for member in here.samples[0].members:
            assert storage.read_range(record.file, member.offset, member.size) == contents(number)[member.suffix]


def test_what_a_killed_process_has_left_in_the_file_is_cut_off(tmp_path: Path) -> None:
    storage, scratch = Storage(tmp_path), tmp_path / "scratch"
    segment = segment_of([make_unit(tmp_path, f"unit{number}") for number in range(2)])
    scratch.touch()
    make(scratch, "path", segment, storage)
    whole = scratch.read_bytes()
    with SegmentTar(storage, scratch, "path") as tar:
        tar.add(segment.units[0], Output(contents=[("unit0", 3, contents(0))]))
        end = tar.end
    scratch.write_bytes(whole[:end] + b"half of a sample" * 1000)
    with SegmentTar(storage, scratch, "path", end) as tar:
        tar.add(segment.units[1], Output(contents=[("unit1", 3, contents(1))]))
    assert scratch.read_bytes() == whole


def test_a_segment_without_samples_has_no_tar(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    segment = segment_of([make_unit(tmp_path, "unit0")])

    def refuse(scratch: Path, path: str) -> tuple[list[SegmentRow], int]:
        with SegmentTar(storage, scratch, path) as tar:
            rejection = Rejection(reason="no_face", score=0.25)
            output = Output(rejected=[RejectedPiece(key="unit0", rejection=rejection)])
            return [SegmentRow.of(tar.add(segment.units[0], output))], tar.end

    record = commit_segment(storage, segment, refuse)
    [row] = record.rows
    assert (row.outcome, row.reason, row.score) == ("rejected", "no_face", 0.25)
    assert record.file is None and tars(storage) == [] and storage.list("tmp") == []
    assert read_segment(storage, JOB, segment.name) == record


# --- races ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from pathlib import Path
from talkinghead.files.storage import Storage
from tests.orchestration.units.test_segment import commit
from tests.support.segments import make_unit, segment_of

storage = Storage(sys.argv[1])
segments = [segment_of([make_unit(Path("."), f"unit{n}-{k}") for k in range(3)], f"clips-{n:06d}") for n in range(%d)]
%s
print("ready", flush=True)
sys.stdin.readline()
for segment in segments:
    print(commit(storage, segment).attempt, flush=True)
"""


def start(storage: Storage, number: int = 1, before: str = "") -> subprocess.Popen[str]:
    """A process that commits segments when it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM % (number, before), storage.location],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("remote", [False, True])
def test_of_workers_at_the_same_segments_one_wins_each(
    remote: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage, number = Storage(tmp_path), 20
    if remote:
        server: LocalS3 = request.getfixturevalue("s3")
        storage, number = Storage(server.uri("races")), 6
    processes = [start(storage, number) for _ in range(3)]
    for process in processes:
        tell(process)
    said = [process.communicate(timeout=240)[0].split() for process in processes]
    # All of them name the same attempts, whose tars are the only ones: who was refused has deleted its own.
    assert said[0] == said[1] == said[2] and len(set(said[0])) == number
    assert len(records(storage)) == number
    assert Counter(path.split(".")[1] for path in tars(storage)) == Counter(said[0])
    assert sweep(storage, JOB) == 0
    for path in records(storage):
        found = dataroot.segment_of_record(path)
        assert found
        record = read_segment(storage, *found)
        assert record.file and hash_bytes(storage.read(record.file)) == record.file_sha256


STOP = """
create = Storage.create
def stopped(self, path, data):
    os.kill(os.getpid(), signal.SIGSTOP)
    return create(self, path, data)
Storage.create = stopped
"""


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    while Path(f"/proc/{process.pid}/stat").read_text().split(")")[1].split()[0] != "T":
        time.sleep(0.05)


def test_a_worker_that_comes_late_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Stopped between its tar and its record, while another one does the segment, and the tars are swept."""
    storage = Storage(tmp_path)
    zombie = start(storage, before=STOP)
    tell(zombie)
    wait_until_stopped(zombie)
    [late] = tars(storage)
    assert sweep(storage, JOB) == 0 and tars(storage) == [late], "it may yet be the first"
    first = commit(storage, segment_of([make_unit(tmp_path, f"unit0-{k}") for k in range(3)]))
    assert set(tars(storage)) == {late, first.file}
    assert [file.path for file in unnamed_tars(storage, JOB)] == [late]
    assert sweep(storage, JOB) == 1 and tars(storage) == [first.file]
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.communicate(timeout=60)[0].split() == [first.attempt] and zombie.returncode == 0
    assert tars(storage) == [first.file] and read_segment(storage, JOB, first.segment) == first


def test_a_slow_worker_does_not_lose_its_tar(tmp_path: Path) -> None:
    """Nobody else does the segment: whatever is swept meanwhile, it commits what is there."""
    storage = Storage(tmp_path)
    slow = start(storage, before=STOP)
    tell(slow)
    wait_until_stopped(slow)
    assert sweep(storage, JOB) == 0
    os.kill(slow.pid, signal.SIGCONT)
    [attempt] = slow.communicate(timeout=60)[0].split()
    [path] = tars(storage)
    assert path.split(".")[1] == attempt and sweep(storage, JOB) == 0 and tars(storage) == [path]


def test_a_store_that_answers_too_late_does_not_make_it_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record was taken, but the answer was lost; the second try finds a record, which is its own."""
    storage, create = Storage(tmp_path), Storage.create

    def twice(self: Storage, path: str, data: bytes) -> bool:
        create(self, path, data)
        return create(self, path, data)

    monkeypatch.setattr(Storage, "create", twice)
    record = commit(storage, segment_of([make_unit(tmp_path, "unit0")]))
    assert tars(storage) == [record.file] and read_segment(storage, JOB, record.segment) == record
