"""RUN of a stranger: nothing is written or removed through its links, nothing waits, no file runs or asks for much."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy_task
from tests.support.foreign_checkpoints import Payload, archive, put_tensor
from tests.support.train_commands import run_train, toy
from tests.support.training_states import make, state_of
from train.recipe import TASKS
from train.run.overview import write_overview
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder, folder_name, steps_in
from train.run.validation import run_validation

TASKS["toy"] = toy_task.__name__

FOLDERS = ("checkpoints", "checkpoints/step-00000004", "validation", "validation/step-00000004", "task", "tensorboard")
MORE_FOLDERS = ("logs", "pretrained_model", "wandb", "checkpoints/.step-00000008.tmp-12345678")
FILES = (".lock", "index.html", "metrics.jsonl", "config.json", "checkpoints/last", "logs/rank-0.log", "logs/stop")
MORE_FILES = (".config.json.tmp-12345678", "validation/step-00000004/validation.log", "logs/failure.json")


def config(**train: Any) -> RunConfig:
    base = toy_task.tiny()
    recipe = dataclasses.replace(base, train=dataclasses.replace(base.train, **train))
    return RunConfig(task="toy", recipe_name="tiny", recipe=recipe, data="none")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """RUN with some of what a training leaves."""
    path = tmp_path / "run"
    RunFolder.start(path, config())
    for name in (*FOLDERS, *MORE_FOLDERS):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    return path


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: files with their content, links with where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def uses(path: Path) -> dict[str, Callable[[], Any]]:
    return {
        "start": lambda: RunFolder.start(path, config()),
        "start anew": lambda: RunFolder.start(path, config(seed=5)),
        "open": lambda: RunFolder.open(path),
        "overview": lambda: write_overview(path),
    }


# --- links and pipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FOLDERS, *MORE_FOLDERS, *FILES, *MORE_FILES])
def test_nothing_happens_through_a_link(run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    target = victim / "own"
    place = run / name
    if name in (*FOLDERS, *MORE_FOLDERS):
        for child in sorted(place.rglob("*"), reverse=True):
            child.rmdir() if child.is_dir() else child.unlink()
        place.rmdir()
        (target / "step-00000001").mkdir(parents=True)
        (target / "thesis.txt").write_text("years of work")
    else:
        place.unlink(missing_ok=True)
        victim.mkdir()
        target.write_text(json.dumps(config().to_json()) if name == "config.json" else "years of work")
    place.symlink_to(target)
    before = contents(victim)
    for what, use in uses(run).items():
        with pytest.raises(ValueError, match=r"is a link to .*put the file or folder itself in its place") as caught:
            use()
        assert str(place) in str(caught.value), what
    assert contents(victim) == before
    assert name == "index.html" or not (run / "index.html").exists(), "nor is the page made"


def test_a_run_may_be_a_link_itself(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    with RunFolder.start(link, config()).locked():
        pass
    assert write_overview(RunFolder.open(link).path) == link / "index.html"


def test_wandb_makes_links_of_its_own(run: Path) -> None:
    (run / "wandb" / "latest-run").symlink_to("run-1")
    RunFolder.start(run, config())


@pytest.mark.parametrize("name", [*FILES, *MORE_FILES, "validation/step-00000004/result.json"])
def test_nobody_waits_for_a_named_pipe(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    for use in uses(run).values():
        with pytest.raises(ValueError, match="is a named pipe, not a file"):
            use()


# --- files of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"photo.png": "image"},
        {"config.json": '{"model_type": "bert"}', "model.bin": "weights"},
        {"config.json": "not even JSON"},
        {".lock": "left by another program"},
        {".lock": "process 12 on host\nand more"},
        {"checkpoints/mine/notes.txt": "work"},
    ],
)
def test_a_folder_that_is_no_run_stays_as_it_was(tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "folder"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = contents(folder)
    with pytest.raises(ValueError, match=str(folder)):
        RunFolder.start(folder, config())
    assert contents(folder) == before


def test_only_what_has_our_names_is_removed(run: Path) -> None:
    checkpoints = run / "checkpoints"
    names = (
        "step-4",
        "step-00000001-mine",
        "step-²",
        "step-000000004",
        "step-best",
        ".notes.tmp-draft",
        ".a.tmp-ABCDEF01",
    )
    for place in (checkpoints, run / "validation", run):
        for name in names:
            (place / name).mkdir()
            (place / name / "thesis.txt").write_text("years of work")
    before = contents(run)
    RunFolder.start(run, config())
    kept = make(checkpoints, keep=1, asynchronous=False)
    for step in (5, 6):
        kept.save(step, state_of(step))
    kept.close()
    assert {name: data for name, data in before.items() if "thesis" in name}.items() <= contents(run).items()
    assert steps_in(checkpoints) == [6]


def test_steps_are_those_with_folders_of_our_form(tmp_path: Path) -> None:
    for step in (0, 7, 99_999_999, 100_000_000, 10**17):
        (tmp_path / folder_name(step)).mkdir()
    for name in ("step-9", "step-000000009", "step-٠٠٠٠٠٠٠١", "step-1e7", "step-" + "9" * 19, "step-00000003\n"):
        (tmp_path / name).mkdir()
    (tmp_path / folder_name(5)).touch()
    assert steps_in(tmp_path) == [0, 7, 99_999_999, 100_000_000, 10**17]
    assert steps_in(tmp_path / "none") == []


def test_the_owner_is_named_if_it_is_another(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.start(run, config())
    assert not caplog.records
    monkeypatch.setattr(os, "geteuid", lambda: run.stat().st_uid + 1)  # a user who did not make it
    RunFolder.start(run, config())
    with pytest.raises(ValueError, match="the weights of step 4 are neither in"):
        run_validation(RunFolder.open(run), 4, RunFolder.open(run).data_sets)
    warned = [record for record in caplog.records if "belongs to another user" in record.message]
    assert len(warned) == 2 and all(record.levelno == logging.WARNING for record in warned)


# --- what its files say -----------------------------------------------------------------------------------------------

WRONG: tuple[tuple[str, Any], ...] = (
    ("data", 5),
    ("data", ["a"]),
    ("task", {"a": 1}),
    ("task", "x" * 100_000),
    ("recipe_name", None),
    ("annotation", ["v1"]),
    ("annotation", {"version": 3}),
    ("weights", []),
    ("weights", {"features": "a"}),
    ("weights", {"features": {"kind": "folder"}}),
    ("weights", {"features": {"kind": "folder", "name": "a", "sha256": 1}}),
    ("libraries", {"torch": None}),
    ("more", 1),
    ("format", "y" * 100_000),
    ("recipe", 3),
    ("recipe", {"config": {}, "train": {}}),
)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_config_of_another_kind_is_one_line(run: Path, name: str, value: Any) -> None:
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    for use in (lambda: RunFolder.open(run), lambda: RunFolder.start(run, config())):
        with pytest.raises(ValueError, match=r"config\.json") as caught:
            use()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"format": 1' + b"0" * 5000 + b"}",
        b" " * (2 << 20),
        b'{"format": 1, "data": NaN}',
    ],
)
def test_a_config_that_asks_for_much_is_one_line(run: Path, data: bytes) -> None:
    (run / "config.json").write_bytes(data)
    for use in (lambda: RunFolder.open(run), lambda: RunFolder.start(run, config())):
        with pytest.raises(ValueError, match=r"config\.json") as caught:
            use()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_no_setting_is_no_number(run: Path) -> None:
    file = run / "config.json"
    value = json.loads(file.read_text())
    value["recipe"]["train"]["optimizer"]["learning_rate"] = float("nan")
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"config\.json"):
        RunFolder.start(run, config())


def test_going_on_with_it_runs_no_code(tmp_path: Path) -> None:
    """From the command line, with right hashes next to a checkpoint that is not: one warning, and nothing ran."""
    run, marker = tmp_path / "run", tmp_path / "owned"
    assert run_train(tmp_path / "a", *toy(run)).process.exitcode == 0
    newest = run / "checkpoints" / folder_name(8)
    put_tensor(newest, archive(Payload(marker)), name="module.head.bias")
    done = run_train(tmp_path / "b", *toy(run, "--train.steps", 10))
    assert done.process.exitcode == 0 and not done.errors and "Traceback" not in done.stderr
    said = "checkpoint step-00000008 is damaged (module.head.bias in __0_0.distcp: it is no plain tensor)"
    assert said in done.stderr and "going on from step 4" in done.stderr
    assert not marker.exists()


def test_an_export_names_no_place_of_the_machine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "data").mkdir()
    arguments = toy(run)
    arguments[arguments.index("none")] = tmp_path / "data"
    assert run_train(tmp_path / "a", *arguments).process.exitcode == 0
    exported = {path: path.read_bytes() for path in (run / "pretrained_model").rglob("*") if path.is_file()}
    assert exported and not [path for path, data in exported.items() if str(tmp_path).encode() in data]
