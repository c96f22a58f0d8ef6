"""SIGKILL to workers and to the driver at random moments: the shards come out bit-identical, nothing is lost."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from talkinghead.provenance import hash_file
from tests.support.job_commands import ROOT, TWO_SHARDS, Command, digests

KILLS = 20


def start(source: Path, data: Path) -> subprocess.Popen[bytes]:
    return start_command(data, "shards", "--source", source, "--data", data, *TWO_SHARDS)


def start_command(data: Path, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestration", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"TALKINGHEAD_TEST_RUN": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def processes_of(data: Path, *, units_only: bool = True) -> list[int]:
    """Ids of the processes that Ray runs for this DATA (the environment marks them as ours): the workers that run a
    unit just now, or all, Ray's own servers and agents too."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"TALKINGHEAD_TEST_RUN={data}".encode() in (folder / "environ").read_bytes():
                title = (folder / "cmdline").read_bytes()
                if title.startswith((b"ray::_pool_task", b"ray::_alone_task")) or not units_only:
                    found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def wait_until_gone(data: Path) -> None:
    """A killed driver takes its private Ray with it; wait for that, so that one command at a time is tested."""
    deadline = time.monotonic() + 30
    while processes_of(data) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(finished: Path, sample_source: Path, tmp_path: Path, command: Command) -> None:
    """The driver and one of Ray's processes in turn. A command goes on where the last one died; the result of one that
    gets through is compared, and the next starts from nothing."""
    chance = random.Random(20)
    expected = digests(finished)
    killed: Counter[str] = Counter()
    data = tmp_path / "data0"
    while sum(killed.values()) < KILLS:
        driver = start(sample_source, data)
        deadline = time.monotonic() + chance.uniform(3.0, 14.0)
        while time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.05)
        if driver.poll() is None:
            whom = "other" if sum(killed.values()) % 2 else "driver"
            others = [process for process in processes_of(data, units_only=False) if process != driver.pid]
            victim = driver.pid if whom == "driver" or not others else chance.choice(others)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed["driver" if victim == driver.pid else "other"] += 1
        _, errors = driver.communicate(timeout=240)
        wait_until_gone(data)
        if driver.returncode == 0:
            assert digests(data) == expected
            data = tmp_path / f"data{sum(killed.values())}-{time.monotonic_ns()}"
        elif driver.returncode == 1:  # Ray itself was hit
            assert b"error: " in errors or b"GCS" in errors, errors.decode()[-3000:]
        else:
            assert driver.returncode == -signal.SIGKILL
    assert killed["driver"] and killed["other"]

    command("orchestration", "shards", "--source", sample_source, "--data", data, *TWO_SHARDS)
    assert digests(data) == expected
    command("shards", "verify", "--data", data, "--deep")
    command("orchestration", "report", "--data", data)
    command("orchestration", "report", "--data", finished)
    outcomes = [list(csv.DictReader((d / "report/inputs.csv").open())) for d in (data, finished)]
    assert outcomes[0] == outcomes[1]


def test_one_killed_worker_and_one_killed_driver(
    finished: Path, sample_source: Path, tmp_path: Path, command: Command
) -> None:
    """The short form of the above, which is never left out: the driver dies while clips are cut, then a worker."""
    data = tmp_path / "data"
    driver = start(sample_source, data)
    while driver.poll() is None and not (data / "records").exists():
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until_gone(data)
    assert not list(data.glob("clips-*.tar"))

    driver = start(sample_source, data)
    hit = False
    while driver.poll() is None and not hit:
        for worker in processes_of(data)[:1]:
            os.kill(worker, signal.SIGKILL)
            hit = True
        time.sleep(0.02)
    _, errors = driver.communicate(timeout=240)
    assert hit and driver.returncode == 0, errors.decode()[-3000:]
    assert b"raylet" not in errors, "Ray's own words stay out of it"
    assert digests(data) == digests(finished)
    assert not list((data / "tmp").iterdir())


DERIVE = ("derive", "--columns", "latents,mouth,labels", "--labels.attributes", "emotion", "--workers", 2)
DERIVE = (*DERIVE, *(f"--latents.{name}=tiny" for name in ("vae", "image-encoder")), "--latents.width=128")
DERIVE = (*DERIVE, "--latents.height=128")
BASIS = ("basis", "--workers", 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_of_columns_and_fits_change_nothing(finished: Path, tmp_path: Path, command: Command) -> None:
    """Columns and global fits, killed as above in turn; each comes out as if nothing had happened."""
    expected = Path(shutil.copytree(finished, tmp_path / "expected"))
    for arguments in (DERIVE, BASIS):
        command("orchestration", *arguments, "--data", expected)
    chance = random.Random(12)
    kills, number = 0, 0
    while kills < KILLS:
        data = Path(shutil.copytree(finished, tmp_path / f"data{number}"))
        number += 1
        for arguments in (DERIVE, BASIS):
            done = False
            while not done:
                driver = start_command(data, *arguments, "--data", data)
                deadline = time.monotonic() + chance.uniform(1.0, 9.0)
                while time.monotonic() < deadline and driver.poll() is None:
                    time.sleep(0.02)
                if driver.poll() is None and kills < KILLS:
                    driver.send_signal(signal.SIGKILL)
                    kills += 1
                _, errors = driver.communicate(timeout=240)
                wait_until_gone(data)
                assert driver.returncode in (0, -signal.SIGKILL), errors.decode()[-3000:]
                done = driver.returncode == 0
        assert derived_digests(data) == derived_digests(expected)
        command("shards", "verify", "--data", data, "--deep")
        shutil.rmtree(data)


def derived_digests(data: Path) -> dict[str, str]:
    """Hashes of everything that readers see of columns and fits, and of the manifest that names them."""
    files = [data / "DATASET.json", *data.rglob("ann/*/*.tar"), *data.glob("index/*"), *data.rglob("fits/*/*.npz")]
    return {path.relative_to(data).as_posix(): hash_file(path) for path in files}
