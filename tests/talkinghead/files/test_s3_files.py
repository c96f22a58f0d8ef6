from __future__ import annotations

import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from talkinghead.files import s3_files
from talkinghead.files.s3_files import RefusedError, S3Files, Version
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import UnreachableError
from tests.support.object_store import LocalS3
from tests.support.store_faults import answering, one_write_at_a_time, refusing_conditions, without_conditions


def test_a_file_is_created_once_and_replaced_as_it_was_read(s3: LocalS3) -> None:
    writes = S3Files(s3.uri("conditional/once"))
    assert writes.read("file") is None
    first = writes.create("file", b"one")
    assert first is not None and writes.read("file") == Version(b"one", first)
    assert writes.create("file", b"other") is None

    second = writes.replace("file", b"two", first)
    assert second is not None and second != first
    assert writes.replace("file", b"three", first) is None
    assert writes.read("file") == Version(b"two", second)

    writes.delete("file")
    writes.delete("file")
    assert writes.replace("file", b"three", second) is None and writes.read("file") is None


def test_it_is_the_place_that_storage_knows(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """With credentials of the URI, and of the environment."""
    uri, secret = s3.uri("conditional/same%20place"), s3.uri_with_credentials("conditional/same%20place")
    S3Files(uri).create("a/file", b"content")
    assert Storage(uri).read("a/file") == b"content"
    for name in s3.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert S3Files(secret).read("a/file") is not None


def test_of_many_writers_one_succeeds(s3: LocalS3) -> None:
    writes = [S3Files(s3.uri("conditional/many")) for _ in range(8)]
    with one_write_at_a_time(s3), ThreadPoolExecutor(8) as pool:
        for number in range(5):
            done = list(pool.map(lambda one: one[1].create(f"{number}", b"%d" % one[0]), enumerate(writes)))  # noqa: B023
            (winner,) = [rank for rank, tag in enumerate(done) if tag is not None]
            assert Storage(s3.uri("conditional/many")).read(f"{number}") == b"%d" % winner
            tag = done[winner]
            done = list(pool.map(lambda one: one[1].replace(f"{number}", b"2-%d" % one[0], tag), enumerate(writes)))  # noqa: B023
            assert sum(tag is not None for tag in done) == 1


def test_storage_creates_by_them(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the file comes between the look and the write."""
    storage = Storage(s3.uri("conditional/storage"))
    assert storage.create("records/one", b"first") and not storage.create("records/one", b"second")
    monkeypatch.setattr(Storage, "exists", lambda *_: False)
    assert not storage.create("records/one", b"second") and storage.read("records/one") == b"first"
    # A store without them gets what it got before.
    with answering(s3, refusing_conditions):
        assert storage.create("records/one", b"second") and storage.read("records/one") == b"second"


@pytest.mark.parametrize("fault", [without_conditions, refusing_conditions])
def test_a_store_without_conditional_writes_is_found_out(s3: LocalS3, fault: Any) -> None:
    writes = S3Files(s3.uri("conditional/probe"))
    writes.check()
    with answering(s3, fault), pytest.raises(RefusedError, match=r"conditional writes .*as Amazon S3 does") as refused:
        writes.check()
    assert "\n" not in str(refused.value)
    assert Storage(s3.uri("conditional/probe")).names() == []  # the probe leaves nothing


def test_a_write_whose_answer_is_lost_is_known_as_ours(s3: LocalS3) -> None:
    """The store has written and says 500; the second try then meets the first."""
    lost: list[str] = []

    def lose(environment: dict[str, Any], application: Any) -> Iterable[bytes] | str | None:
        if environment["REQUEST_METHOD"] != "PUT" or environment["PATH_INFO"] in lost:
            return None
        lost.append(environment["PATH_INFO"])
        list(application(environment, lambda *_: None))
        return "500 Internal Server Error"

    writes = S3Files(s3.uri("conditional/lost"), patience_s=60)
    with answering(s3, lose):
        tag = writes.create("file", b"mine")
        assert tag is not None and len(lost) == 1
        lost.clear()
        assert writes.replace("file", b"mine again", tag) is not None and len(lost) == 1
    # Somebody else's is not taken for ours.
    lost.clear()
    with answering(s3, lose):
        assert writes.create("file", b"another") is None
    assert writes.read("file") == Version(b"mine again", writes.read("file").tag)  # type: ignore[union-attr]


def test_errors_that_pass_are_waited_for_and_others_are_one_line(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [3]

    def overloaded(environment: dict[str, Any], application: Any) -> str | None:
        busy[0] -= 1
        return "503 Slow Down" if busy[0] >= 0 else None

    writes = S3Files(s3.uri("conditional/errors"), patience_s=60)
    with answering(s3, overloaded):
        assert writes.create("file", b"x") is not None and busy[0] < 0
    busy[0] = 1 << 20
    with answering(s3, overloaded), pytest.raises(UnreachableError, match="cannot reach s3://clips/conditional/errors"):
        S3Files(s3.uri("conditional/errors"), patience_s=0).read("file")

    nowhere = s3.uri("x").replace("//clips", "//no-such-bucket")
    for ask in (
        lambda w: w.read("x"),
        lambda w: w.create("x", b""),
        lambda w: w.replace("x", b"", '"0"'),
        lambda w: w.delete("x"),
    ):
        with pytest.raises(UnreachableError, match="bucket") as failed:
            ask(S3Files(nowhere, patience_s=0))
        assert "\n" not in str(failed.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDofanother")
    before = time.monotonic()
    with pytest.raises(UnreachableError) as refused:
        S3Files(s3.uri("conditional/errors"), patience_s=600).read("file")
    assert time.monotonic() - before < 300 and "ofanother" not in str(refused.value)  # refused credentials stay so


def test_a_part_of_a_large_file_that_fails_is_sent_again_alone(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_files, "_PART_BYTES", 5 << 20)
    data = random.Random(0).randbytes(12 << 20)
    (tmp_path / "large").write_bytes(data)
    asked: list[str] = []

    def fail_once(environment: dict[str, Any], application: Any) -> str | None:
        asked.append(f"{environment['REQUEST_METHOD']} {environment['QUERY_STRING']} {environment.get('HTTP_RANGE')}")
        second = "partNumber=2" in asked[-1] or f"bytes={5 << 20}-" in asked[-1]
        return "503 Slow Down" if second and asked.count(asked[-1]) == 1 else None

    files = S3Files(s3.uri("conditional/large"), patience_s=0)
    with answering(s3, fail_once):
        files.upload("large", tmp_path / "large")
        assert sum("partNumber" in one for one in asked) == 4
        asked.clear()
        files.download("large", tmp_path / "back")
        assert sum("bytes=" in one for one in asked) == 4
    assert (tmp_path / "back").read_bytes() == data == Storage(s3.uri("conditional/large")).read("large")
    with pytest.raises(FileNotFoundError):
        files.download("none", tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        files.upload("none", tmp_path / "missing")


@pytest.mark.parametrize("location", ["gs://bucket/run", "/a/folder", "s3://"])
def test_other_places_have_none(location: str) -> None:
    with pytest.raises(ValueError, match=r"only s3://… has them|names no bucket"):
        S3Files(location)
