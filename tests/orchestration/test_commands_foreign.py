"""Commands on a stranger's DATA: nothing outside it is written or removed, nothing hangs, every fault is one line."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster import Cluster, ClusterSettings
from orchestration.jobs.annotate import run_annotate
from orchestration.jobs.finish import finish
from orchestration.jobs.pack import run_pack
from orchestration.outcomes import current_quarantine
from orchestration.units.executor import RetrySettings, Tally, UnitRunner
from orchestration.units.ledger import Ledger
from orchestration.units.unit import JobStoppedError, Unit
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.storage import LINKED_FOLDERS, Storage
from talkinghead.runtime.errors import MachineError
from tests.support.job_commands import Command
from tests.support.old_layout import age_data

PRECIOUS = ("chapter1.tex", "0123456789abcdef" * 2, "a/b/deep.txt", "ingest/ab/a.0000000000000000.tar")


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    """A folder of the user's, also with names that ours could have."""
    for name in PRECIOUS:
        (tmp_path / "thesis" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "thesis" / name).write_text("precious")
    return tmp_path / "thesis"


def unharmed(thesis: Path) -> bool:
    files = {path.relative_to(thesis).as_posix(): path.read_text() for path in thesis.rglob("*") if path.is_file()}
    return files == dict.fromkeys(PRECIOUS, "precious")


def error_line(stderr: str) -> str:
    assert "Traceback" not in stderr, stderr
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """The least DATA that `retry` works on."""
    plan = {"units": {}, "settings": {}, "contents": {}}
    (tmp_path / "data" / "plans").mkdir(parents=True)
    (tmp_path / "data" / "plans" / "ingest-folder.json").write_text(json.dumps(plan))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["tmp", "lease"])
def test_a_link_where_every_command_writes(name: str, planned: Path, thesis: Path, command: Command) -> None:
    (planned / name).symlink_to(thesis)
    done = command("orchestration", "retry", "--data", planned, check=False)
    assert done.returncode == 2 and f"{planned / name} is a link to {thesis}" in error_line(done.stderr)
    assert unharmed(thesis)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "status"), [("records", 2), ("units", 1)])
def test_a_link_where_results_should_go_stops_the_job(
    folder: str, status: int, sample_source: Path, tmp_path: Path, thesis: Path, command: Command
) -> None:
    """Nothing is quarantined for it: no input is at fault. Where the user says so, results go through the link."""
    data = tmp_path / "data"
    data.mkdir()
    (data / folder).symlink_to(thesis)
    arguments = ("orchestration", "ingest", "--source", sample_source, "--data", data, "--workers", 2)
    done = command(*arguments, check=False)
    assert done.returncode == status and f"{data / folder} is a link to {thesis}" in error_line(done.stderr)
    assert unharmed(thesis) and not list(data.glob("quarantine/*/*"))
    assert LINKED_FOLDERS in done.stderr


@pytest.mark.slow
def test_a_linked_folder_that_the_user_names_is_used_by_the_workers(
    sample_source: Path, tmp_path: Path, thesis: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "units").symlink_to(thesis)
    monkeypatch.setenv(LINKED_FOLDERS, "units")
    command("orchestration", "ingest", "--source", sample_source, "--data", data, "--workers", 2)
    made = [path for path in (thesis / "ingest").rglob("*.tar") if path.read_bytes() != b"precious"]
    assert len(made) == len(list(data.glob("records/ingest/*/*.json"))) - 1 >= 4, "one clip is rejected"
    assert all((thesis / name).read_text() == "precious" for name in PRECIOUS)


def test_pipes_and_deep_plans_neither_hang_nor_crash(planned: Path, command: Command) -> None:
    for folder, name in (
        ("plans", "annotate-v1"),
        ("quarantine/ingest", f"a.{'0' * 16}"),
        ("records/ingest/ca", "a.b"),
    ):
        (planned / folder).mkdir(parents=True, exist_ok=True)
        os.mkfifo(planned / folder / f"{name}.json")
    done = command("orchestration", "quarantine", "--data", planned)
    assert done.stdout.strip() == "0 in quarantine"
    (planned / "plans" / "ingest-folder.json").write_text("[" * 200_000)
    for name in ("quarantine", "retry"):
        done = command("orchestration", name, "--data", planned, check=False)
        assert (
            done.returncode == 2
            and "ingest-folder.json is no plan of ours: it is no JSON of ours: it is nested" in error_line(done.stderr)
        )


# --- absurd content ---------------------------------------------------------------------------------------------------

ABSURD = (None, True, -1, 0.5, 1e308, 10**400, 1 << 62, "", "../../etc", [], [[]], {}, {"a": 1}, float("nan"))


class PlanningRunner(UnitRunner):
    """Runs nothing: a job stops where it has something to do."""

    def run(self, job: str, units: Sequence[Unit], *, gpu_share: float = 0.0) -> Tally:
        del gpu_share
        ledger = Ledger(self.storage, job)
        if not all(ledger.is_done(unit) for unit in units):
            raise JobStoppedError("there are units to run")
        return Tally()


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys and numbers that lead to every part of a JSON value."""
    yield place
    for step in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        yield from places(value[step], (*place, step))


def changed(value: Any, place: tuple[Any, ...], part: Any) -> Any:
    if not place:
        return part
    result = copy.copy(value)
    result[place[0]] = changed(value[place[0]], place[1:], part)
    return result


def test_absurd_records_and_plans_are_one_line(finished: Path, tmp_path: Path) -> None:
    """A part of a record or plan, anywhere in it, is something else; every job of planning and finishing reads it."""
    data, chance = tmp_path / "data", random.Random(11)
    shutil.copytree(finished, data)
    age_data(data)  # plans as JSON, too
    storage, model = Storage(data), resolve_face_model()
    runner = PlanningRunner(storage=storage, cluster=Cluster(ClusterSettings()), retry=RetrySettings())
    work: list[Callable[[], object]] = [
        lambda: run_annotate(runner, "v1", (), model),
        lambda: run_pack(runner, "v1"),
        lambda: finish(storage, "v1"),
        lambda: current_quarantine(storage),
    ]
    whole = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.suffix != ".tar"}
    files = [path for path in whole if path.relative_to(data).parts[0] in ("plans", "records", "quarantine")]
    refused = 0
    for _ in range(150):
        file = chance.choice(sorted(files))
        value = json.loads(whole[file])
        file.write_text(json.dumps(changed(value, chance.choice(list(places(value))), chance.choice(ABSURD))))
        for job in work:
            try:
                job()
            except (ValueError, OSError, MachineError) as error:
                assert "\n" not in str(error)
                refused += 1
        for path in data.glob("plans/*.parquet"):
            path.unlink()
        for path, content in whole.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
    assert refused > 100
