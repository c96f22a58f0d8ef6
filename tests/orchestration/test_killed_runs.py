"""SIGKILL to workers and to the driver at random moments: the shards come out bit-identical, nothing is lost."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.orchestration.conftest import ROOT, TWO_SHARDS, Command
from tests.orchestration.test_pipeline import digests

KILLS = 20


def start(source: Path, data: Path) -> subprocess.Popen[bytes]:
    arguments = ["shards", "--source", source, "--data", data, *TWO_SHARDS]
    return subprocess.Popen(
        [sys.executable, "-m", "orchestration", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"TALKINGHEAD_TEST_RUN": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def workers_of(data: Path) -> list[int]:
    """Process ids of the Ray workers that run a unit for this DATA (the environment marks them as ours)."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"TALKINGHEAD_TEST_RUN={data}".encode() in (folder / "environ").read_bytes():
                title = (folder / "cmdline").read_bytes()
                if title.startswith(b"ray::") and b"IDLE" not in title:
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until_gone(data: Path) -> None:
    """A killed driver takes its private Ray with it; wait for that, so that one run at a time is tested."""
    deadline = time.monotonic() + 30
    while workers_of(data) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(finished: Path, sample_source: Path, tmp_path: Path, command: Command) -> None:
    """Worker and driver in turn; each run goes on where the last one died, in a fresh DATA when one got through."""
    chance = random.Random(20)
    expected = digests(finished)
    killed: Counter[str] = Counter()
    data = tmp_path / "data0"
    while sum(killed.values()) < KILLS:
        run = start(sample_source, data)
        delay = chance.uniform(3.0, 14.0)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.05)
        whom = "worker" if sum(killed.values()) % 2 else "driver"
        if run.poll() is None and whom == "driver":
            run.kill()
            run.communicate()
            killed["driver"] += 1
            wait_until_gone(data)
            continue
        for worker in workers_of(data)[:1] if run.poll() is None else []:
            try:
                os.kill(worker, signal.SIGKILL)
                killed["worker"] += 1
            except ProcessLookupError:
                continue
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors.decode()[-3000:]
        assert digests(data) == expected
        data = tmp_path / f"data{sum(killed.values())}-{time.monotonic_ns()}"
    assert killed["driver"] and killed["worker"]

    command(
        "orchestration", "shards", "--source", sample_source, "--data", data, "--workers", 2, "--shards", "min_shards=2"
    )
    assert digests(data) == expected
    command("shards", "verify", "--data", data, "--deep")
    command("orchestration", "report", "--data", data)
    command("orchestration", "report", "--data", finished)
    outcomes = [list(csv.DictReader((d / "report/inputs.csv").open())) for d in (data, finished)]
    assert outcomes[0] == outcomes[1]


def test_one_killed_worker_and_one_killed_driver(
    finished: Path, sample_source: Path, tmp_path: Path, command: Command
) -> None:
    """The short form of the above, for every test run: the driver dies while clips are cut, then a worker."""
    data = tmp_path / "data"
    run = start(sample_source, data)
    while run.poll() is None and not (data / "records").exists():
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_until_gone(data)
    assert not list(data.glob("clips-*.tar"))

    run = start(sample_source, data)
    hit = False
    while run.poll() is None and not hit:
        for worker in workers_of(data)[:1]:
            os.kill(worker, signal.SIGKILL)
            hit = True
        time.sleep(0.02)
    _, errors = run.communicate(timeout=240)
    assert hit and run.returncode == 0, errors.decode()[-3000:]
    assert digests(data) == digests(finished)
    assert not list((data / "tmp").iterdir())
