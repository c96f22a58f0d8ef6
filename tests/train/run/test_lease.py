from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from talkinghead.files.s3_files import S3Files
from tests.support.object_store import LocalS3
from tests.support.paths import ROOT
from tests.support.store_faults import answering, one_write_at_a_time
from tests.support.train_commands import wait_for
from train.run.lease import Lease, LeaseLost

HOLD = """
import sys, time
from talkinghead.files.s3_files import S3Files
from train.run.lease import Lease
lease = Lease(S3Files(sys.argv[1]), ".lock", 0.3)
lease.take()
print(lease.token, flush=True)
time.sleep(600)
"""


def lease(server: LocalS3, name: str, renew_s: float = 0.3) -> Lease:
    return Lease(S3Files(server.uri(f"lease/{name}"), patience_s=0), ".lock", renew_s)


def holder(server: LocalS3, name: str) -> tuple[subprocess.Popen[str], str]:
    """A process that holds the lease, and its token."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, server.uri(f"lease/{name}")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_one_holds_it_and_the_others_learn_who(s3: LocalS3) -> None:
    one, two = lease(s3, "one", renew_s=2.0), lease(s3, "one")
    one.take()
    one.check()
    with pytest.raises(ValueError, match=rf"a training runs in s3://\S+ \(process {os.getpid()} on .* by .*\): wait"):
        two.take()
    one.release()
    two.take()
    two.release()
    two.release()  # once more does nothing


def test_of_many_who_want_it_one_has_it(s3: LocalS3) -> None:
    leases = [lease(s3, "many", renew_s=2.0) for _ in range(6)]

    def take(one: Lease) -> bool:
        try:
            one.take()
        except ValueError:
            return False
        return True

    with one_write_at_a_time(s3), ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, leases)) == 1
    for one in leases:
        one.release()


def test_it_waits_for_one_who_is_just_ending(s3: LocalS3) -> None:
    one, two = lease(s3, "patience", renew_s=2.0), lease(s3, "patience")
    one.take()
    threading.Timer(1.0, one.release).start()
    two.take(patience_s=240)
    two.check()
    two.release()


def test_the_lease_of_a_killed_process_runs_out(s3: LocalS3) -> None:
    process, token = holder(s3, "killed")
    process.kill()
    process.wait()
    ours = lease(s3, "killed")
    ours.take()
    assert ours.token != token
    ours.release()


def test_whoever_knows_that_the_holder_is_dead_does_not_wait(s3: LocalS3) -> None:
    one, two = lease(s3, "dead", renew_s=500.0), lease(s3, "dead")
    one.take()
    before = time.monotonic()
    two.take(dead=one.token)
    assert time.monotonic() - before < 200  # of 1,500 s without that
    two.release()


def test_who_was_stopped_for_too_long_has_lost_it(s3: LocalS3) -> None:
    process, _ = holder(s3, "stopped")
    process.send_signal(signal.SIGSTOP)
    ours = lease(s3, "stopped")
    ours.take()
    theirs = S3Files(s3.uri("lease/stopped"))
    process.send_signal(signal.SIGCONT)
    # It renews, and must not take it back.
    held = theirs.read(".lock")
    wait_for(lambda: theirs.read(".lock") != held)
    ours.check()
    process.kill()
    process.wait()
    ours.release()


def test_the_one_before_learns_that_it_is_lost(s3: LocalS3) -> None:
    one, two = lease(s3, "lost", renew_s=0.1), lease(s3, "lost")
    one.take()
    two.take(dead=one.token)
    wait_for(lambda: one._lost is not None)
    with pytest.raises(LeaseLost, match=r"another training has taken over s3://\S+ \(process .*this one ends"):
        one.check()
    one.release()  # it is not ours to give back
    two.check()
    two.release()


def test_a_store_that_is_away_for_a_while_takes_no_lease(s3: LocalS3) -> None:
    one, two = lease(s3, "away", renew_s=2.0), lease(s3, "away")
    one.take()
    failed = [0]

    def away(*_: object) -> str:
        failed[0] += 1
        return "503 Service Unavailable"

    with answering(s3, away):
        wait_for(lambda: failed[0] > 5)
    renewed = one._tag
    wait_for(lambda: one._tag != renewed)
    one.check()
    with pytest.raises(ValueError, match="a training runs"):
        two.take()
    one.release()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"holder": "x", "token": "y", "renew_s": 1e9}'])
def test_a_file_that_is_no_lease_is_left(s3: LocalS3, content: bytes) -> None:
    files = S3Files(s3.uri("lease/foreign"))
    files.delete(".lock")
    assert files.create(".lock", content) is not None
    with pytest.raises(ValueError, match=r"\.lock is no lease of a training"):
        lease(s3, "foreign").take()
    found = files.read(".lock")
    assert found is not None and found.data == content
