"""Two commands that write to one DATA, with other settings: one is refused, or takes over, and DATA stays whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shards.manifest import read_manifest
from talkinghead.files.lease import LEASE_TTL
from talkinghead.files.storage import Storage
from tests.support.job_commands import Command
from tests.support.object_store import LocalS3
from tests.support.paths import ROOT
from tests.support.store_faults import answering

PACKED = ("DATASET.json", "clips-", "ann/", "index/", "lease/", "plans/shards", "records/pack-", "runs/", "tmp/")


@pytest.fixture
def unpacked(finished: Path, s3: LocalS3, tmp_path: Path) -> Storage:
    """DATA in a store, in which everything is annotated and nothing is packed."""
    storage = Storage(s3.uri(tmp_path.name))
    for path in sorted(path for path in finished.rglob("*") if path.is_file()):
        name = path.relative_to(finished).as_posix()
        if not name.startswith(PACKED):
            storage.write(name, path.read_bytes())
    return storage


@contextmanager
def packing(storage: Storage, shards: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that packs DATA into so many shards."""
    settings = ["--shards", f"min_shards={shards}", "--workers", "1"]  # so that nothing is packed before what is held
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration", "shards", "--data", storage.location, *settings],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_driver_that_is_stopped_while_packing_is_taken_over(unpacked: Storage, s3: LocalS3, command: Command) -> None:
    """Its worker's shard comes to the store after the other driver's, which has dealt the samples otherwise."""
    begun, over = threading.Event(), threading.Event()

    def hold(request: dict[str, Any], _: Any) -> None:
        """Keep the first shard that is written until the other driver has ended."""
        first = "POST" if "uploads" in request["QUERY_STRING"] else "PUT"
        if request["REQUEST_METHOD"] == first and "/clips-0" in request["PATH_INFO"] and not begun.is_set():
            begun.set()
            over.wait()

    with answering(s3, hold), packing(unpacked, 2, **{LEASE_TTL: "5"}) as one:
        assert begun.wait(250), one.poll()
        try:
            # While it lives, another one is refused, and learns by whom.
            refused = command("orchestration", "retry", "--data", unpacked.location, check=False)
            said = refused.stderr.strip().splitlines()[-1]
            assert refused.returncode == 2 and f"(process {one.pid} on " in said and "orchestration shards" in said
            one.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
            unpacked.delete("plans/shards.parquet")  # else the other one would go on with this plan
            two = command("orchestration", "shards", "--data", unpacked.location, "--shards", "min_shards=3")
            assert f"is taken over: no sign of life of process {one.pid}" in two.stderr
            taken = {shard.name: shard.sha256 for shard in read_manifest(unpacked).media}
            assert len(taken) == 3
        finally:
            over.set()
            one.send_signal(signal.SIGCONT)
        _, errors = one.communicate(timeout=250)
    assert one.returncode == 1 and "Traceback" not in errors, errors[-4000:]
    assert "may write to s3://" in errors.strip().splitlines()[-1] and "no more: " in errors, errors[-4000:]
    assert {shard.name: shard.sha256 for shard in read_manifest(unpacked).media} == taken
    verified = command("shards", "verify", "--data", unpacked.location, "--deep")
    assert "ok" in verified.stdout
    # And the next command finds nothing to do, nor to complain about.
    again = command("orchestration", "shards", "--data", unpacked.location)
    assert again.stderr.count(" 0 done now, 0 quarantined") >= 3
