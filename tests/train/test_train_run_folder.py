"""RUN: created, gone on with, refused; one training at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from talkinghead.storage import Storage
from tests.train import toy_task
from train import training
from train.config import ScheduleConfig
from train.recipe import TASKS, Recipe
from train.run_folder import RunConfig, RunFolder, check_place, differences
from train.start import LaunchSettings

TASKS["toy"] = toy_task.__name__


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a run ü" / "Läufe 1"


def config(toy: dict[str, Any] | None = None, data: str = "none", **train: Any) -> RunConfig:
    base = toy_task.tiny()
    recipe = Recipe(
        config=dataclasses.replace(base.config, **(toy or {})), train=dataclasses.replace(base.train, **train)
    )
    return RunConfig(task="toy", recipe_name="tiny", recipe=recipe, data=data)


def test_a_run_comes_back_as_it_was_started(path: Path) -> None:
    asked = config(toy={"bad_loss": (3, 4)})
    started = RunFolder.start(path, asked)
    opened = RunFolder.open(path)
    assert opened.config == started.config == asked
    assert opened.path == path.absolute()
    assert (path / "checkpoints").is_dir() and (path / "logs").is_dir()
    assert json.loads((path / "config.json").read_text())["libraries"]["torch"]


def test_what_only_says_how_fast_may_change(path: Path) -> None:
    train = config().recipe.train
    RunFolder.start(path, config())
    changed = {
        "steps": 99,
        "num_workers": 7,
        "microbatch": 1,
        "parallel": dataclasses.replace(train.parallel, threads=3, precision="bf16"),
        "checkpoint": dataclasses.replace(train.checkpoint, keep=9),
        "validation": dataclasses.replace(train.validation, every=5),
        "log": dataclasses.replace(train.log, every=1),
    }
    RunFolder.start(path, config(**changed))
    assert RunFolder.open(path).recipe.train == dataclasses.replace(train, **changed), "the new ones hold"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (config(toy={"width": 9}), "config.width: 8 -> 9"),
        (config(seed=3), "train.seed: 0 -> 3"),
        (config(global_batch=8), "train.global_batch: 4 -> 8"),
        (config(data="elsewhere"), 'data: "none" -> "elsewhere"'),
        (config(schedule=ScheduleConfig(name="cosine")), 'train.schedule.name: "constant" -> "cosine"'),
    ],
)
def test_another_run_is_refused_with_the_difference(path: Path, other: RunConfig, said: str) -> None:
    RunFolder.start(path, config())
    before = (path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="started otherwise") as caught:
        RunFolder.start(path, other)
    assert said in str(caught.value)
    assert (path / "config.json").read_bytes() == before


def test_the_number_of_steps_decides_where_the_schedule_ends() -> None:
    cosine = ScheduleConfig(name="cosine")
    assert differences(config(schedule=cosine), config(schedule=cosine, steps=9)) == ["train.steps: 8 -> 9"]


def test_a_torn_config_is_named_wherever_it_is_torn(path: Path) -> None:
    RunFolder.start(path, config())
    file = path / "config.json"
    whole = file.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"config\.json"):
            RunFolder.open(path)
    for wrong in (b"\xff\xfe", b"[]", b"null", b"{}", whole.replace(b'"seed"', b'"sead"')):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"config\.json"):
            RunFolder.start(path, config())


def test_places_that_are_no_run_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run"):
        RunFolder.open(path)
    with pytest.raises(ValueError, match="object store"):
        check_place("s3://bucket/run")
    path.mkdir(parents=True)
    (path / "photo.png").touch()
    with pytest.raises(ValueError, match=r"photo\.png"):
        RunFolder.start(path, config())
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "run"):
        with pytest.raises(ValueError, match="no folder"):
            RunFolder.start(place, config())


def test_one_training_at_a_time_until_its_process_is_dead(path: Path) -> None:
    run = RunFolder.start(path, config())
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with run.locked():
            os.write(done, b"x")
            signal.pause()
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        for _ in range(2):
            with pytest.raises(ValueError, match=f"a training runs in .*process {child} on "):
                RunFolder.start(path, config())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with RunFolder.start(path, config()).locked():
        pass


def test_credentials_of_the_data_stay_out_of_the_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://key:secret@bucket/data?region=x"
    seen: dict[str, Any] = {}

    def start(run: Path, asked: RunConfig, where: LaunchSettings, data: str | None) -> RunFolder:
        seen.update(data=data)
        return RunFolder.start(run, asked)

    monkeypatch.setattr(training, "start", start)
    monkeypatch.setattr(training, "_annotation", lambda storage, config: {})
    training.train(training.parse("toy", ["tiny", "--data", uri, "--run", str(path)]))
    assert seen["data"] == Storage(uri).location
    assert "secret" not in (path / "config.json").read_text()
    training.train(training.parse("toy", ["tiny", "--data", "some/data", "--run", str(path.with_name("other"))]))
    assert seen["data"] is None, "config.json names it in full, wherever it is read"
    assert RunFolder.open(path.with_name("other")).data == str(Path("some/data").absolute())
