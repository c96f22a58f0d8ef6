from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from talkinghead.files import s3_files
from talkinghead.files.patience import RETRIES
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
    """One request, without a look before it; and nothing else where the store, or this machine, has none."""
    storage, asked = Storage(s3.uri("conditional/storage")), []
    assert storage.create("records/one", b"first")
    with answering(s3, lambda request, _: asked.append(request["REQUEST_METHOD"])):
        assert not storage.create("records/one", b"second") and storage.create("records/two", b"first")
    assert asked == ["PUT", "PUT"] and storage.read("records/one") == b"first"
    with answering(s3, refusing_conditions), pytest.raises(RefusedError, match="refuses conditional writes"):
        storage.create("records/three", b"second")
    monkeypatch.setattr("talkinghead.files.storage.boto_speaks_to", lambda _: False)
    with pytest.raises(
        RefusedError, match=r"can be read here, but not written by jobs.*pip install 'talkinghead\[s3\]'"
    ):
        Storage(s3.uri("conditional/storage")).create("records/three", b"second")
    assert not storage.exists("records/three")


def look_and_write(request: dict[str, Any], application: Any) -> Iterable[bytes] | str | None:
    """A store that looks for the file first and writes later, as if the two were one thing."""
    if request["REQUEST_METHOD"] != "PUT" or "HTTP_IF_NONE_MATCH" not in request:
        return None
    answers: list[str] = []
    look = {**request, "REQUEST_METHOD": "HEAD", "CONTENT_LENGTH": "0", "wsgi.input": io.BytesIO()}
    list(application(look, lambda status, *_: answers.append(status)))
    if answers[0].startswith("200"):
        return "412 Precondition Failed"
    time.sleep(1.0)
    del request["HTTP_IF_NONE_MATCH"]
    return None


def test_a_store_that_looks_and_then_writes_is_found_out(s3: LocalS3) -> None:
    with answering(s3, look_and_write), pytest.raises(RefusedError, match="ignores conditional writes"):
        S3Files(s3.uri("conditional/slowly")).check()


@pytest.mark.parametrize("status", ["409 Conditional Request Conflict", "500 Internal Error", "503 Slow Down", None])
def test_creating_outlasts_faults(
    s3: LocalS3, tmp_path: Path, status: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also connections that are cut before, and after, the store has written."""
    faults = [4]
    RETRIES.take()
    monkeypatch.setattr(s3_files, "_TIMEOUT_S", 2.0)  # the test's server only ceases to answer

    def fail(request: dict[str, Any], application: Any) -> str | None:
        if request["REQUEST_METHOD"] != "PUT" or faults[0] == 0:
            return None
        faults[0] -= 1
        if status is None:
            if faults[0] % 2:
                list(application(request, lambda *_: None))
            raise ConnectionError("cut by the test")
        return status

    storage = Storage(s3.uri(tmp_path.name))
    with answering(s3, fail):
        assert storage.create("records/one", b"mine")
    assert faults == [0] and storage.read("records/one") == b"mine" and RETRIES.take()[0] == 4
    assert not storage.create("records/one", b"other")


def test_a_slow_store_is_waited_for_and_a_silent_one_is_asked_again(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_files, "_TIMEOUT_S", 3.0)
    seconds = [0.5, 20.0]
    woken = threading.Event()
    RETRIES.take()

    def wait(request: dict[str, Any], application: Any) -> str | None:
        if request["REQUEST_METHOD"] == "PUT" and seconds:
            woken.wait(seconds.pop(0))
        return None

    storage = Storage(s3.uri(tmp_path.name))
    with answering(s3, wait):
        assert storage.create("records/slow", b"1") and RETRIES.take()[0] == 0
        assert storage.create("records/silent", b"1") and RETRIES.take()[0] == 1
        woken.set()
    assert storage.read("records/silent") == b"1"


@pytest.mark.parametrize("size", [1000, 12 << 20])
def test_a_file_is_created_from_a_local_one(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """In parts where it is large; a part that fails is sent again; what is there stays."""
    monkeypatch.setattr(s3_files, "_PART_BYTES", 5 << 20)
    one, other = random.Random(0).randbytes(size), random.Random(1).randbytes(size)
    (tmp_path / "one").write_bytes(one)
    (tmp_path / "other").write_bytes(other)
    asked: list[str] = []

    def fail_once(environment: dict[str, Any], application: Any) -> str | None:
        asked.append(environment["QUERY_STRING"])
        return "503 Slow Down" if "partNumber=2" in asked[-1] and asked.count(asked[-1]) == 1 else None

    files = S3Files(s3.uri(tmp_path.name), patience_s=60)
    with answering(s3, fail_once):
        assert files.create_from("shard", tmp_path / "one")
    assert sum("partNumber" in text for text in asked) == (4 if size > 5 << 20 else 0)
    assert not files.create_from("shard", tmp_path / "other")
    assert Storage(s3.uri(tmp_path.name)).read("shard") == one
    client = boto3.client("s3", endpoint_url=f"http://{s3.host}:{s3.port}", region_name="us-east-1")
    assert not client.list_multipart_uploads(Bucket="clips").get("Uploads"), "parts that nothing is made of are removed"


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
