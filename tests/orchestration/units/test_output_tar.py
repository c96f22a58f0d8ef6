"""A unit's tar that grows on the disk: its bytes, its memory, and what is left after an error or a death."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.units.output_tar import OutputTar
from orchestration.units.records import RejectedPiece
from orchestration.units.unit import JobStoppedError, Output, Unit, run_unit, store_output
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from talkinghead.sampletar import pack_samples
from talkinghead.schema import Rejection
from tests.support.limited_call import call_limited
from tests.support.object_store import LocalS3
from tests.support.paths import ROOT

KEYS = ("test", "clip", "0123456789abcdef")


def make_unit(function: str) -> Unit:
    job, key, pkey = KEYS
    return Unit(job=job, key=key, pkey=pkey, function=function, payload={}, source="clip.mp4", time_limit_s=60.0)


def files_of(storage: Storage) -> list[str]:
    return [file.path for folder in ("units", "records", "tmp") for file in storage.list(folder)]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=5))
def test_bytes_and_hashes(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    """The tar is the one that is packed in memory, and its record tells places and hashes."""
    storage = Storage(tmp_path_factory.mktemp("data"))
    samples = [(f"clip-{number}", {"txt": content, "bin": content[::-1]}) for number, content in enumerate(contents)]
    with OutputTar(storage, *KEYS) as tar:
        for number, (key, members) in enumerate(samples):
            tar.add(key, number, members, scores={"score": 0.5}, labels={"label": "a"})
    record = tar.record()
    data = storage.read(record.file or "")
    assert data == pack_samples(samples)
    assert (record.file, record.file_bytes, record.file_sha256) == (dataroot.unit(*KEYS), len(data), hash_bytes(data))
    end = 0
    for sample, (_, members) in zip(record.samples, samples, strict=True):
        begin, end = end, sample.members[-1].offset + -(-sample.members[-1].size // 512) * 512
        assert sample.sha256 == hash_bytes(data[begin:end])
        assert [data[m.offset : m.offset + m.size] for m in sample.members] == list(members.values())
        assert (sample.scores, sample.labels) == ({"score": 0.5}, {"label": "a"})
    assert record.frames == sum(range(len(samples)))


def test_what_is_left_out_is_only_in_the_hash(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with OutputTar(storage, *KEYS) as tar:
        tar.leave_out("gone", {"txt": b"secret"})
        tar.add("one", 1, {"txt": b"1"})
        tar.leave_out("lost", {"txt": b"secret"})
    record = tar.record()
    data = storage.read(record.file or "")
    assert data == pack_samples([("one", {"txt": b"1"})]) and record.file_bytes == len(data)
    whole = pack_samples([("gone", {"txt": b"secret"}), ("one", {"txt": b"1"}), ("lost", {"txt": b"secret"})])
    assert record.file_sha256 == hash_bytes(whole)
    with OutputTar(storage, "test", "all", KEYS[2]) as tar:
        tar.leave_out("gone", {"txt": b"secret"})
    assert tar.record().file is None


def test_without_samples_there_is_no_tar(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rejected = [RejectedPiece(key="clip", rejection=Rejection(reason="no_face", score=0.0, detail="none"))]
    record = store_output(storage, make_unit(""), Output(rejected=rejected))
    assert (record.file, record.file_bytes, record.rejected, files_of(storage)) == (None, 0, rejected, [])
    nothing = store_output(storage, make_unit(""), Output())
    assert [piece.rejection.reason for piece in nothing.rejected] == ["no_output"]


def test_memory_does_not_grow_with_the_number_of_pieces(tmp_path: Path) -> None:
    """500 MB in pieces of 5 MB."""
    code = """
from orchestration.units.unit import Unit, run_unit
from talkinghead.files.storage import Storage
def call(data, unit):
    return run_unit(Storage(data), Unit.from_json(unit), attempts=1).file_bytes
"""
    called = call_limited(code, tmp_path / "data", make_unit("tests.support.poison:hundred_pieces").to_json())
    assert int(called.said) > 500_000_000
    assert called.memory < 100_000_000


@pytest.mark.parametrize("remote", [False, True])
def test_an_error_leaves_nothing(remote: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    storage = Storage(tmp_path)
    if remote:
        server: LocalS3 = request.getfixturevalue("s3")
        storage = Storage(server.uri("error"))
    with pytest.raises(RuntimeError, match="after two pieces"), OutputTar(storage, *KEYS) as tar:
        tar.add("clip-0", 1, {"txt": b"0"})
        tar.add("clip-1", 1, {"txt": b"1"})
        raise RuntimeError("after two pieces")
    assert files_of(storage) == []
    with OutputTar(storage, *KEYS) as tar:
        tar.add("clip-0", 1, {"txt": b"0"})
    assert files_of(storage) == [dataroot.unit(*KEYS)]


@pytest.mark.parametrize("remote", [False, True])
def test_a_death_between_pieces_leaves_nothing_that_counts(
    remote: bool, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "data")
    if remote:
        server: LocalS3 = request.getfixturevalue("s3")
        place = server.uri("death")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    code = f"""
import os, signal, sys
from orchestration.units.output_tar import OutputTar
from talkinghead.files.storage import Storage
with OutputTar(Storage(sys.argv[1]), *{KEYS}) as tar:
    tar.add("clip-0", 1, {{"txt": bytes(1_000_000)}})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, place], cwd=ROOT, check=False)
    assert done.returncode == -9
    storage = Storage(place)
    assert not storage.list("units") and not storage.list("records")
    assert len(storage.list("tmp")) == (0 if remote else 1)
    assert storage.sweep_temporary() == (0 if remote else 1)
    assert files_of(storage) == [] and not list(scratch.iterdir())


def test_a_place_that_cannot_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "units").write_text("a file where the folder should be")
    with pytest.raises(JobStoppedError, match=f"^cannot write to {tmp_path}: "):
        run_unit(Storage(tmp_path), make_unit("tests.support.poison:hundred_pieces"), attempts=1)
    assert files_of(Storage(tmp_path)) == []


def test_a_record_can_be_read_back(tmp_path: Path) -> None:
    """The record that is returned is the one on the disk."""
    storage = Storage(tmp_path)
    record = run_unit(storage, make_unit("tests.support.poison:hundred_pieces"), attempts=2)
    stored = json.loads(storage.read(dataroot.record(*KEYS)))
    assert stored["attempts"] == 2 and stored["file_sha256"] == record.file_sha256 and len(stored["samples"]) == 100
