"""A run notes what it reads, whole or not at all; where it cannot, it goes on and says so."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path

import pytest

from shards.pins import Pin, forget_gone, pin_run, read_pins
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from tests.support.object_store import LocalS3
from tests.support.small_disk import REFUSED, run_with_mounts

FITS = ["a" * 64, "b" * 64]


@pytest.fixture
def data(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "data")
    storage.write("DATASET.json", b"{}")
    return storage


def stored(storage: Storage) -> dict[str, tuple[bytes, int]]:
    """Content and number of each file of DATA: the same content written again is another file."""
    assert storage.local_root
    return {
        file.path: (storage.read(file.path), (storage.local_root / file.path).stat().st_ino)
        for file in storage.list("pins")
    }


def test_a_pin_reads_back_and_is_written_once(data: Storage, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    pin_run(data, str(run), versions=["v1", "toy-2", "v1"], fits=FITS[::-1])
    pin = Pin(host=socket.gethostname(), run=str(run), versions=("toy-2", "v1"), fits=tuple(FITS))
    assert read_pins(data) == [pin] and not pin.is_gone
    assert list(stored(data)) == [pin.path] == [dataroot.pin(f"{pin.host}:{run}")]
    before = stored(data)
    pin_run(data, str(run), versions=["toy-2", "v1"], fits=FITS)
    assert stored(data) == before
    # What the run reads now takes the place of what it read before.
    pin_run(data, str(run), versions=["v2"])
    assert [pin.versions for pin in read_pins(data)] == [("v2",)]


def test_a_run_is_known_by_its_whole_path(data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    pin_run(data, str(tmp_path / "run"), versions=["v1"])
    monkeypatch.chdir(tmp_path)
    pin_run(data, "run", versions=["v1"])
    assert len(read_pins(data)) == 1
    pin_run(data, "other", versions=["v1"])
    assert len(read_pins(data)) == 2


def test_only_runs_that_are_surely_gone_are_gone(data: Storage, tmp_path: Path) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    for run in (str(here), str(gone), str(here / "below"), "s3://bucket/run", os.fsdecode(b"/run-\xff")):
        pin_run(data, run, versions=["v1"])
    other = Pin(host="elsewhere", run=str(gone), versions=("v1",))
    data.write(other.path, json.dumps({**vars(other)}).encode())
    expected = {str(gone), str(here / "below"), os.fsdecode(b"/run-\xff")}
    assert {pin.run for pin in read_pins(data) if pin.is_gone} == expected
    assert {pin.run for pin in forget_gone(data)} == expected
    assert {(pin.host, pin.run) for pin in read_pins(data)} == {
        (socket.gethostname(), str(here)),
        (socket.gethostname(), "s3://bucket/run"),
        ("elsewhere", str(gone)),
    }
    # A file in the place of a folder above it: the run is gone. A link that leads nowhere: it may come back.
    gone.write_text("")
    assert Pin(host=socket.gethostname(), run=str(gone / "run"), versions=()).is_gone
    (tmp_path / "link").symlink_to("/nowhere")
    assert not Pin(host=socket.gethostname(), run=str(tmp_path / "link"), versions=()).is_gone


def test_credentials_are_not_stored(data: Storage) -> None:
    pin_run(data, "s3://key:secret@bucket/run", versions=["v1"])
    assert b"secret" not in data.read(read_pins(data)[0].path)


def test_files_of_others_are_left_and_damaged_pins_named(data: Storage) -> None:
    pin_run(data, "/run", versions=["v1"])
    [pin] = read_pins(data)
    whole = data.read(pin.path)
    for name in ("pins/notes.json", "pins/0123456789abcdef.txt", "pins/a/0123456789abcdef.json"):
        data.write(name, b"mine")
    assert read_pins(data) == [pin]
    value = json.loads(whole)
    for damaged in (
        whole[:20],
        b"[" * 10**5,
        json.dumps(value | {"versions": ["../v1"]}).encode(),
        json.dumps(value | {"fits": ["x"]}).encode(),
        json.dumps(value | {"run": "/another"}).encode(),
        json.dumps(value | {"run": ""}).encode(),
        json.dumps(value | {"schema_version": 2}).encode(),
        json.dumps(value | {"surprise": "\x1b[2J"}).encode(),
        b"x" * (2 << 20),
    ):
        data.write(pin.path, damaged)
        with pytest.raises(ValueError, match=pin.path) as raised:
            read_pins(data)
        assert str(raised.value).isprintable() and len(str(raised.value)) < 600
        with pytest.raises(ValueError, match=pin.path):
            forget_gone(data)
        assert data.exists(pin.path)
        # The run itself mends it.
        pin_run(data, "/run", versions=["v1"])
        assert read_pins(data) == [pin]


def test_no_link_is_written_through(data: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert data.local_root
    (tmp_path / "outside").mkdir()
    (data.local_root / "pins").symlink_to(tmp_path / "outside")
    with caplog.at_level(logging.WARNING):
        pin_run(data, "/run", versions=["v1"])
    assert list((tmp_path / "outside").iterdir()) == []
    assert len(caplog.records) == 1 and "cannot know of this run" in caplog.text


PIN = """
import logging, sys
from shards.pins import pin_run
from talkinghead.files.storage import Storage
logging.basicConfig(format="%(message)s")
pin_run(Storage(sys.argv[1]), "/run", versions=["v1"])
print("goes on")
"""


def test_a_read_only_data_set_gets_one_warning(data: Storage) -> None:
    assert data.local_root
    done = run_with_mounts(
        f'mount --bind "$DATA" "$DATA" && mount -o remount,ro,bind "$DATA" || exit {REFUSED};'
        ' exec "$PYTHON" -c "$PIN" "$DATA"',
        env={"DATA": str(data.local_root), "PYTHON": sys.executable, "PIN": PIN},
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"cannot note in {data.uri} what this run reads (")
    assert "Read-only file system" in done.stderr and "`shards drop` cannot know of this run" in done.stderr
    assert read_pins(data) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_gets_one_warning(data: Storage, caplog: pytest.LogCaptureFixture) -> None:
    assert data.local_root
    data.local_root.chmod(0o500)
    try:
        pin_run(data, "/run", versions=["v1"])
    finally:
        data.local_root.chmod(0o700)
    assert len(caplog.records) == 1 and "ermission" in caplog.text and read_pins(data) == []


@pytest.mark.parametrize("sweeps", range(1, 6))
def test_a_job_that_clears_leftovers_does_not_stop_it(
    data: Storage, sweeps: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run holds no lock: a job that starts takes its unfinished file for a leftover, here several times on end."""
    real, swept = os.fsync, []

    def sweeping(descriptor: int) -> None:
        real(descriptor)  # the file is whole, and has not got its name yet
        if len(swept) < sweeps and (removed := Storage(data.uri).sweep_temporary()):
            swept.append(removed)

    monkeypatch.setattr(os, "fsync", sweeping)
    pin_run(data, "/run", versions=["v1"])
    assert swept == [1] * sweeps
    assert len(read_pins(data)) == 1 and not caplog.records


def test_an_object_store(s3: LocalS3, tmp_path: Path) -> None:
    data = Storage(s3.uri("pins-test"))
    pin_run(data, "/gone", versions=["v1"], fits=FITS)
    pin_run(data, str(tmp_path), versions=["v1"])
    assert [pin.is_gone for pin in sorted(read_pins(data), key=lambda pin: len(pin.run))] == [True, False]
    forget_gone(data)
    assert [pin.run for pin in read_pins(data)] == [str(tmp_path)]
