"""What a submitted job runs: what make itself would run, with places that mean the same on every node."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from orchestration.cluster import submitted
from orchestration.cluster.submitted import JOBS, PLACES, job_command
from talkinghead.runtime.errors import MachineError
from tests.support.job_commands import Command
from tests.support.paths import ROOT


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_a_job_is_what_its_target_runs() -> None:
    assert job_command("reannotate ANN=v3 DATA=s3://bucket/data ENGINE=tasks") == [
        "python", "-m", "orchestration", "reannotate", "--data=s3://bucket/data", "--version=v3", "--engine=tasks",
    ]  # fmt: skip
    assert job_command("verify DATA=/data ARGS='--deep'") == [
        "python",
        "-m",
        "shards",
        "verify",
        "--data=/data",
        "--deep",
    ]


def test_every_job_is_a_target_and_can_be_told() -> None:
    for name in JOBS:
        assert re.search(rf"^{name}: .*\n\t\$\(run\)", makefile(), re.M), name
        assert job_command(f"{name} DATA=/data RUN=/run")[:2] == ["python", "-m"]


def test_places_become_absolute_and_names_stay() -> None:
    found = job_command("shards SOURCE=my/videos")
    assert f"--source={ROOT}/my/videos" in found and f"--data={ROOT}/build/data" in found
    found = job_command("latents DATA=/data VAE=tiny IMAGE_ENCODER=talkinghead")
    assert "--vae=tiny" in found and f"--image-encoder={ROOT}/talkinghead" in found
    known = re.search(r"^USER_VALUES := (.*)", makefile().replace("\\\n", ""), re.M)
    assert known and set(PLACES) <= set(known[1].split())


def test_nothing_in_a_job_is_run_here(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    found = job_command(
        f"annotate DATA='/d/$(shell touch {touched})$(touch {touched})`touch {touched}`' ANN='a; touch {touched}'"
    )
    assert not touched.exists()
    assert f"--version=a; touch {touched}" in found


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("", "must begin with one of"),
        ("clean", "must begin with one of"),
        ("test DATA=/d", "must begin with one of"),
        ("annotate DATA", "NAME=VALUE"),
        ("annotate --data=/d", "NAME=VALUE"),
        ("annotate RAY_ADDRESS=a:1", "not within JOB"),
        ("annotate DATA='/d", "cannot be read"),
        ('annotate DATA=/d ARGS="--x \'y"', "cannot be split"),
        ("annotate DATA=s3://AKIDAKID:DUMMYSECRET@bucket/x", "credentials|key|password"),
    ],
)
def test_what_is_no_job_is_refused(job: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        job_command(job)
    assert "DUMMYSECRET" not in str(caught.value)


def test_make_targets_pass_their_values_on(command: Command) -> None:
    """The whole way from `make submit`, whose own variables are not the job's; no cluster is up."""
    done = subprocess.run(
        ["make", "--old-file=.venv/.up-to-date", "submit", "JOB=annotate ANN='a b' DATA=/d", "RAY_ADDRESS=127.0.0.1:1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    wrong = command("orchestration.cluster", "submit", "--job", "clean", check=False)
    assert wrong.returncode == 2 and len([line for line in wrong.stderr.splitlines() if "error: " in line]) == 1


class Cut:
    """Client of a cluster whose connection is cut in the middle of a job's log."""

    status = JobStatus.RUNNING
    tails = 0

    def get_job_info(self, name: str) -> Any:
        return SimpleNamespace(status=self.status, driver_exit_code=0)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.tails += 1
        yield "one\ntw"
        if self.tails == 1:
            raise RuntimeError("closed unexpectedly")
        self.status = JobStatus.SUCCEEDED
        yield "o\nthree\n"


def test_after_a_cut_the_log_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    client: Any = Cut()
    assert submitted.follow(client, "a:1", "job").status == 0
    assert client.tails == 3 and capsys.readouterr().err == "one\ntwo\nthree\n"


class Vanished:
    """Client of a cluster whose machine goes without a word, which no open connection tells."""

    asked = 0

    def get_job_info(self, name: str) -> Any:
        self.asked += 1
        if self.asked > 2:
            raise ConnectionError("no route to host")
        return SimpleNamespace(status=JobStatus.RUNNING)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""


def test_a_cluster_that_vanishes_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted, "ASK_S", 0.01)
    monkeypatch.setattr(submitted, "SILENT_S", 0.0)
    client: Any = Vanished()
    with pytest.raises(MachineError, match="has not answered for 0 s; job job may go on there"):
        submitted.follow(client, "a:1", "job")
    assert client.asked > 2


class Idle:
    """Client through a proxy that cuts connections on which nothing comes for a while; each question takes 15 s."""

    status = JobStatus.RUNNING
    now, tails, asked = 0.0, 0, 0

    def get_job_info(self, name: str) -> Any:
        self.now, self.asked = self.now + 15, self.asked + 1
        return SimpleNamespace(status=self.status, driver_exit_code=0)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.tails += 1
        until = self.asked + 3
        while self.asked < until:
            await asyncio.sleep(0.001)
        if self.tails < 5:
            raise RuntimeError("closed unexpectedly")
        self.status = JobStatus.SUCCEEDED
        yield "done"


def test_a_quiet_job_is_followed_through_many_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = Idle()
    monkeypatch.setattr(submitted, "ASK_S", 0.01)
    monkeypatch.setattr(submitted, "time", SimpleNamespace(monotonic=lambda: client.now, sleep=lambda seconds: None))
    assert submitted.follow(client, "a:1", "job").status == 0
    assert client.now > 2 * submitted.SILENT_S
