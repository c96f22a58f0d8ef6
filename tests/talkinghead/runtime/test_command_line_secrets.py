"""No main takes credentials in its command line, and no error line shows a secret."""

from __future__ import annotations

import subprocess
import sys

import pytest

from talkinghead.runtime.command_line import AGAIN, end_by_policy, run_command_line
from tests.support.paths import ROOT

SECRET = "wJalrXUtnFEMI/K7MDENG"
URI = f"s3://AKIDEXAMPLE:{SECRET}@bucket/data"


@pytest.mark.parametrize(
    "arguments",
    [
        ["orchestration", "shards", "--source", "somewhere", "--data", URI],
        ["orchestration", "report", f"--data={URI}"],
        ["shards", "verify", "--data", URI],
        ["ingest", "catalog", "--dataset", "folder", "--source", ".", "--data", URI],
        ["infer", "evaluate", "--data", f"s3://bucket/x?endpoint_override=http://name:{SECRET}@host"],
        ["train", "audio2mesh", "tiny", "--data", URI, "--run", "run"],
        ["train", "overview", "--run", URI],
        ["annotate", "models", URI],
    ],
)
def test_every_main_refuses_credentials(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2 and not done.stdout, done.stderr
    assert done.stderr.startswith("error: s3://") and done.stderr.count("\n") == 1
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr and SECRET not in done.stderr and "AKIDEXAMPLE" not in done.stderr


def test_a_command_line_of_a_caller_is_refused_too(capsys: pytest.CaptureFixture[str]) -> None:
    def show(data: str) -> str:
        return data

    assert run_command_line(show, ["--data", URI], prog="show") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: s3://***@bucket/data was given with credentials") and SECRET not in shown.err


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_an_error_line_shows_no_secret_of_the_environment(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("https_proxy", "http://person:word-of-the-proxy@proxy:3128")

    def fail() -> int:
        raise error(f"signed with {SECRET}; no route to http://person:word-of-the-proxy@proxy:3128")

    assert end_by_policy(fail, [], advice=AGAIN) == 2
    assert capsys.readouterr().err == "error: signed with ***; no route to http://***@proxy:3128\n"
