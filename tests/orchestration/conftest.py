"""The embedded sample, and DATA folders made from it by the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.sample import make_sample
from tests.support.job_commands import TWO_SHARDS, Command, run_command


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs a command of ours as a user does."""
    return run_command


@pytest.fixture(scope="session")
def sample_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample's files, with names that break careless code, and files that are no clips."""
    folder = make_sample(tmp_path_factory.mktemp("sample"))
    first = sorted(folder.glob("*.mp4"))[0]
    # Another box at its end: equal bytes would be one input.
    (folder / '-it\'s a "test"; $(touch pwned) + #1 ü.mp4').write_bytes(first.read_bytes() + b"\0\0\0\x08free")
    (folder / "empty.mp4").touch()
    (folder / "notes.mp4").write_text("this is a text file")
    return folder


@pytest.fixture(scope="session")
def finished(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA in which the sample is finished. Not to be changed: copy it first."""
    data = tmp_path_factory.mktemp("finished") / "data"
    run_command("orchestration", "shards", "--source", sample_source, "--data", data, *TWO_SHARDS)
    return data
