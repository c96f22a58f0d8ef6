"""Records of commands: written when one begins, replaced when it ends, whatever its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.command_records import command_records, recorded
from orchestration.units.records import PassRecord
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import MachineError
from tests.support.paths import ROOT


def test_a_record_tells_who_ran_what_with_which_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/orchestration/__main__.py", "annotate", "--data", "a b"])
    about = {"metadata": {"job_submission_id": "annotate-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(about))
    storage = Storage(str(tmp_path))
    old = PassRecord(job="annotate-v1", units=9, frames=9, wall_seconds=9.0)
    storage.write(dataroot.run(old.job, time.time_ns()), old.to_json())
    with recorded(storage):
        (begun,) = command_records(storage, 5)
        for units in (3, 4):
            done = PassRecord(job="annotate-v1", units=units, frames=10, wall_seconds=1.5)
            storage.write(dataroot.run(done.job, time.time_ns()), done.to_json())
    assert begun.ended is None and begun.status is None
    assert begun.command == "python -m orchestration annotate --data 'a b'"
    assert begun.pid == os.getpid() and begun.ray_job == "annotate-1" and begun.user and begun.host
    assert {"python", "talkinghead", "ray", "mediapipe"} <= begun.versions.keys()
    (ended,) = command_records(storage, 5)
    assert ended.status == 0 and ended.ended is not None and ended.ended >= ended.started
    # What was done before the command is not counted.
    assert (ended.jobs["annotate-v1"].units, ended.jobs["annotate-v1"].frames) == (7, 20)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("no such version\nmore"), 2, "no such version"),
        (MachineError("the disk is full"), 1, "the disk is full; run the same"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (AssertionError("ours"), 1, "AssertionError: ours"),
        (ValueError("s3://AKIDAKID:DUMMYSECRET@bucket/x is wrong"), 2, "is wrong"),
    ],
)
def test_a_failed_command_is_recorded_with_its_error(
    tmp_path: Path, error: BaseException, status: int, said: str
) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(type(error)), recorded(storage):
        raise error
    (record,) = command_records(storage, 5)
    assert record.status == status and said in record.error and "DUMMYSECRET" not in record.error


def test_a_killed_command_has_no_end(tmp_path: Path) -> None:
    code = f"""
import time
from orchestration.command_records import recorded
from talkinghead.files.storage import Storage
with recorded(Storage({str(tmp_path)!r})):
    print("begun", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (record,) = command_records(Storage(str(tmp_path)), 5)
    assert record.ended is None and record.status is None and record.pid == process.pid


def test_newest_come_first_and_damaged_ones_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(str(tmp_path))
    for _ in range(3):
        with recorded(storage):
            pass
    names = sorted((tmp_path / "commands").iterdir())
    names[1].write_text("{}")
    assert len(command_records(storage, 2)) == 1 and len(command_records(storage, 5)) == 2
    assert names[1].name in caplog.text
    newest = json.loads(names[2].read_text())
    names[2].write_text(json.dumps(newest | {"host": "other"}))
    assert command_records(storage, 5)[0].host == "other"
