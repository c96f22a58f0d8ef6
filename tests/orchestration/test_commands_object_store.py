"""DATA in an object store: the same shards, no secret in them, and a server that goes away."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.units.ledger import quarantined
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import UnreachableError
from tests.support.job_commands import ROOT, TWO_SHARDS, Command
from tests.support.object_store import ACCESS_KEY, SECRET, LocalS3

FOLDERS = ("ann", "catalog", "index", "plans", "quarantine", "records", "report", "runs", "units")


def tars(storage: Storage) -> dict[str, bytes]:
    """Name → content of the tars that training reads."""
    media = [name for name in (f"clips-{number:06d}.tar" for number in range(9)) if storage.exists(name)]
    return {name: storage.read(name) for name in [*media, *(f.path for f in storage.list("ann", ".tar"))]}


def assert_no_secret(storage: Storage, *texts: str) -> None:
    """Assert that the secret is neither in the output nor in any stored file."""
    assert not any(SECRET in text for text in texts)
    names = ["DATASET.json", *(file.path for folder in FOLDERS for file in storage.list(folder))]
    assert len(names) > 10 and not [name for name in names if SECRET.encode() in storage.read(name)]


def test_finished_data_set_in_an_object_store(
    finished: Path, sample_source: Path, s3: LocalS3, command: Command
) -> None:
    """The short form: a data set that was copied there is verified, reported on, and found complete."""
    uri = s3.uri("copied")
    storage, local = Storage(uri), Storage(finished)
    for path in sorted(path for path in finished.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = path.relative_to(finished).as_posix()
        storage.write(name, local.read(name))
    verified = command("shards", "verify", "--data", uri, "--deep")
    assert "ok" in verified.stdout
    report = command("orchestration", "report", "--data", uri)
    assert report.stdout.startswith("s3://clips/copied/report/index.html?")
    again = command("orchestration", "shards", "--source", sample_source, "--data", uri)
    assert again.stderr.count(" 0 done now, 0 quarantined") == 4
    wrong = command("orchestration", "report", "--data", s3.uri("nothing"), check=False)
    assert wrong.returncode == 2 and "make shards" in wrong.stderr
    said = [text for done in (verified, report, again, wrong) for text in (done.stdout, done.stderr)]
    assert_no_secret(storage, *said)


@pytest.mark.slow
def test_object_store_gives_the_same_shards(finished: Path, sample_source: Path, s3: LocalS3, command: Command) -> None:
    uri = s3.uri("whole")
    storage = Storage(uri)
    first = command("orchestration", "shards", "--source", sample_source, "--data", uri, *TWO_SHARDS)
    assert tars(storage) == tars(Storage(finished))
    media = {name: content for name, content in tars(storage).items() if name.startswith("clips-")}
    second = command("orchestration", "reannotate", "--data", uri, "--version", "v2", "--annotate", "detector_every=2")
    after = tars(storage)
    assert {name: after[name] for name in media} == media and any("ann/v2/" in name for name in after)
    command("shards", "verify", "--data", uri, "--deep")
    command("orchestration", "report", "--data", uri)
    assert_no_secret(storage, first.stdout, first.stderr, second.stdout, second.stderr)


@pytest.mark.slow
def test_server_that_goes_away_stops_the_job_and_loses_nothing(
    finished: Path, sample_source: Path, s3: LocalS3, command: Command
) -> None:
    uri = s3.uri("interrupted")
    storage = Storage(uri)
    arguments = ["shards", "--source", str(sample_source), "--data", uri, *TWO_SHARDS]
    driver = subprocess.Popen(
        [sys.executable, "-m", "orchestration", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while driver.poll() is None and not storage.list("records"):
        time.sleep(0.1)
    s3.stop()
    try:
        _, errors = driver.communicate(timeout=90)
    finally:
        s3.start()
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert driver.returncode == 1 and len(lines) == 1 and "cannot reach s3://clips/interrupted" in lines[0], errors
    assert "Traceback" not in errors and SECRET not in errors
    assert not [record for record in quarantined(storage) if not record.cause.startswith("media:")]

    command("orchestration", *arguments)
    assert tars(storage) == tars(Storage(finished))


def test_wrong_credentials_are_one_clear_error(s3: LocalS3, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDofanother")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-another")
    done = command("orchestration", "report", "--data", s3.uri("x"), check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: cannot reach s3://clips/x")
    assert done.stderr.count("\n") == 1 and "of-another" not in done.stderr and "ofanother" not in done.stderr


def test_code_may_give_credentials_in_a_uri(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in s3.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = Storage(s3.uri_with_credentials("given"))
    storage.write("file", b"content")
    assert storage.read("file") == b"content" and storage.uri.startswith("s3://***@clips/given?")
    with pytest.raises(UnreachableError) as refused:
        Storage(s3.uri("given")).read("file")
    assert ACCESS_KEY not in str(refused.value)


def test_unreachable_place_is_one_clear_error(s3: LocalS3) -> None:
    nowhere = Storage(s3.uri_with_credentials("x").replace("@clips", "@no-such-bucket"))
    with pytest.raises(UnreachableError, match=r"cannot reach s3://\*\*\*@no-such-bucket.*does not exist"):
        nowhere.check_writable()


def test_killed_upload_leaves_no_object(s3: LocalS3) -> None:
    """Large enough for several parts; the process dies after some of them went out."""
    code = """
import os, sys, threading, time
from talkinghead.files.storage import Storage
storage = Storage(sys.argv[1])
with storage.staged("large.tar") as path:
    with path.open("wb") as stream:
        stream.truncate(400 << 20)
    threading.Timer(0.4, os._exit, [9]).start()
"""
    uri = s3.uri("killed")
    done = subprocess.run([sys.executable, "-c", code, uri], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert not Storage(uri).exists("large.tar")
