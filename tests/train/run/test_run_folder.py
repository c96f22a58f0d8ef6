"""RUN: created, gone on with, refused; one training at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from talkinghead.files.storage import Storage
from tests.support import toy_task
from train import commands
from train.config import ParallelConfig, ScheduleConfig
from train.data_sets import DataSets
from train.launch.start import LaunchSettings
from train.recipe import SHORT_NAMES, TASKS, Recipe, recipes_of
from train.run.run_config import RunConfig, differences, is_run_id
from train.run.run_folder import RunFolder, begin, check_place

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


def started(path: Path, asked: RunConfig) -> RunFolder:
    """A run that has a checkpoint, and so something to lose."""
    run = RunFolder.start(path, asked)
    (run.checkpoints / "step-00000004").mkdir()
    return run


def weights(content: str, name: str = "encoder") -> dict[str, dict[str, str]]:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return {"features": {"kind": "folder", "name": name, "sha256": sha256}}


def test_a_run_comes_back_as_it_was_started(path: Path) -> None:
    asked = dataclasses.replace(config(toy={"bad_loss": (3, 4)}), weights=weights("a"))
    run = RunFolder.start(path, asked)
    opened = RunFolder.open(path)
    assert opened.config == run.config == asked
    assert opened.path == path.absolute()
    assert (path / "checkpoints").is_dir() and (path / "logs").is_dir()
    assert json.loads((path / "config.json").read_text())["libraries"]["torch"]


def test_a_run_has_an_identity_that_stays_with_it(path: Path) -> None:
    """Through starts and copies; another run of the same name has another one."""
    run = started(path, config())
    assert is_run_id(run.run_id) and RunFolder.open(path).run_id == run.run_id
    assert RunFolder.start(path, config(num_workers=7)).run_id == run.run_id
    shutil.copytree(path, path.with_name("copy"))
    assert RunFolder.start(path.with_name("copy"), config()).run_id == run.run_id
    assert RunFolder.start(path.with_name("other") / path.name, config()).run_id != run.run_id
    # One that is started anew, since there is nothing to lose, is another run; one that is only started again is not.
    third = RunFolder.start(path.with_name("third"), config()).run_id
    assert RunFolder.start(path.with_name("third"), config()).run_id == third
    assert RunFolder.start(path.with_name("third"), config(seed=3)).run_id != third


def test_a_run_of_older_code_gets_an_identity_when_it_goes_on(path: Path) -> None:
    started(path, config())
    file = path / "config.json"
    value = json.loads(file.read_text())
    del value["run_id"]
    file.write_text(json.dumps(value))
    assert RunFolder.open(path).run_id is None
    assert is_run_id(RunFolder.start(path, config()).run_id)
    for wrong in ("me", 7, "A" * 32, "1" * 31):
        file.write_text(json.dumps(value | {"run_id": wrong}))
        with pytest.raises(ValueError, match="identity of a run"):
            RunFolder.open(path)


def test_what_is_damaged_or_validated_is_something_to_lose(path: Path) -> None:
    for name in ("checkpoints/damaged-step-00000004", "weights/step-00000004"):
        run = RunFolder.start(path / name[0], config())
        (run.path / name).mkdir(parents=True)
        with pytest.raises(ValueError, match="started otherwise"):
            RunFolder.start(run.path, config(seed=3))


def test_what_only_says_how_fast_may_change(path: Path) -> None:
    train = config().recipe.train
    started(path, config())
    changed = {
        "steps": 99,
        "num_workers": 7,
        "microbatch": 1,
        "parallel": dataclasses.replace(train.parallel, threads=3, strategy="fsdp2"),
        "guard": dataclasses.replace(train.guard, abort_after=3),
        "checkpoint": dataclasses.replace(train.checkpoint, keep=9),
        "validation": dataclasses.replace(train.validation, every=5),
        "log": dataclasses.replace(train.log, every=1),
    }
    RunFolder.start(path, config({"wait_s": 2.5}, **changed))
    assert RunFolder.open(path).recipe.train == dataclasses.replace(train, **changed), "the new ones hold"
    assert RunFolder.open(path).recipe.config.wait_s == 2.5


def test_the_run_of_another_task_is_named(path: Path) -> None:
    started(path, config())
    other = dataclasses.replace(config(), task="stage1")
    with pytest.raises(ValueError, match="is a training of toy, not of lmk2video-stage1: take another RUN"):
        RunFolder.start(path, other)


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_a_run_that_knows_the_short_name_goes_on_by_either(path: Path, short: str) -> None:
    """Runs of older code do, and so may a user who types the command."""
    full = SHORT_NAMES[short]
    asked = RunConfig(task=short, recipe_name="tiny", recipe=recipes_of(short)["tiny"](), data="none")
    assert asked.task == full and asked == dataclasses.replace(asked, task=full)
    started(path, asked)
    file = path / "config.json"
    assert json.loads(file.read_text())["task"] == full, "new runs say the whole name"
    for name in (short, full):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"task": short}))
        assert RunFolder.open(path).config == asked
        RunFolder.start(path, dataclasses.replace(asked, task=name))
        assert json.loads(file.read_text())["task"] == full


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (config(toy={"width": 9}), "config.width: 8 -> 9"),
        (config(seed=3), "train.seed: 0 -> 3"),
        (config(global_batch=8), "train.global_batch: 4 -> 8"),
        (config(data="elsewhere"), 'data: "none" -> "elsewhere"'),
        (config(schedule=ScheduleConfig(name="cosine")), 'train.schedule.name: "constant" -> "cosine"'),
        (config(parallel=ParallelConfig(precision="bf16")), 'train.parallel.precision: "fp32" -> "bf16"'),
    ],
)
def test_another_run_is_refused_with_the_difference(path: Path, other: RunConfig, said: str) -> None:
    started(path, config())
    before = (path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="started otherwise") as caught:
        RunFolder.start(path, other)
    assert said in str(caught.value)
    assert (path / "config.json").read_bytes() == before


def test_microbatches_decide_where_dropout_draws() -> None:
    dropout = {"dropout": 0.1}
    assert differences(config(), config(microbatch=1)) == []
    assert differences(config(dropout), config(dropout, microbatch=1)) == ["train.microbatch: 2 -> 1"]
    by_length = {"microbatch_seconds": 3.0}  # then it says how many microbatches a step has
    assert differences(config(**by_length), config(**by_length, microbatch=1)) == ["train.microbatch: 2 -> 1"]


def test_weights_are_compared_by_what_they_are_not_by_where_they_lie(path: Path) -> None:
    def at(place: str, content: str) -> RunConfig:
        return dataclasses.replace(config({"features": place}), weights=weights(content, Path(place).name))

    started(path, at("/a/encoder", "one"))
    RunFolder.start(path, at("/b/moved", "one"))
    assert RunFolder.open(path).recipe.config.features == "/b/moved"
    with pytest.raises(ValueError, match=r"config\.features: \"sha256 \w{16}\" -> \"sha256 \w{16}\""):
        RunFolder.start(path, at("/b/moved", "another"))


def test_a_run_without_a_checkpoint_is_started_anew(path: Path) -> None:
    run = RunFolder.start(path, config())
    for file in (run.task_folder / "derived", run.checkpoints / ".step-4.tmp-a" / "part", run.metrics):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    RunFolder.start(path, config(num_workers=3))
    assert (run.task_folder / "derived").exists(), "nothing else is asked for"
    other = dataclasses.replace(config(data="elsewhere", toy={"width": 6}), annotation={"version": "v2"})
    assert RunFolder.start(path, other).config == RunFolder.open(path).config == other
    assert not run.task_folder.exists() and not run.metrics.exists() and not list(run.checkpoints.iterdir())
    newer = dataclasses.replace(other, annotation={"version": "v3"})
    run.task_folder.mkdir()
    assert RunFolder.start(path, newer).config == newer and not run.task_folder.exists()
    (path / "pretrained_model").mkdir()
    with pytest.raises(ValueError, match="started otherwise"):
        RunFolder.start(path, config())
    older = RunFolder.start(path, other)
    assert older.config.annotation == {"version": "v3"}, "what was derived is of these"


def test_what_can_be_wrong_is_said_before_a_run_is_made(path: Path, tmp_path: Path) -> None:
    for wrong in (config(data="missing"), config({"width": 7}), config({"features": str(tmp_path / "none")})):
        with pytest.raises(ValueError, match=r"missing|even|features"):
            begin(path, wrong)
        assert not path.exists()
    run = begin(path, config())
    assert run.config.weights["features"]["kind"] == "drawn" and run.recipe.config.features == "drawn"


def test_places_of_weights_are_absolute(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "features.safetensors").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    run = begin(path, config({"features": "encoder"}))
    assert run.recipe.config.features == str(tmp_path / "encoder")
    assert run.config.weights["features"]["name"] == "encoder"


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
    with pytest.raises(ValueError, match="it can be a folder, or s3://"):
        check_place("hf://bucket/run")
    with pytest.raises(ValueError, match="RUN is empty"):
        check_place("")
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

    def start(run: Path, asked: RunConfig, where: LaunchSettings, data: DataSets | None) -> RunFolder:
        seen.update(data=data)
        return RunFolder.start(run, asked)

    monkeypatch.setattr(commands, "start", start)
    monkeypatch.setattr(commands, "_annotation", lambda storage, config: {})
    commands.train(commands.parse("toy", ["tiny", "--data", uri, "--run", str(path)]))
    assert seen["data"] == DataSets.of(Storage(uri).location)
    assert "secret" not in (path / "config.json").read_text()
    commands.train(commands.parse("toy", ["tiny", "--data", "some/data", "--run", str(path.with_name("other"))]))
    assert seen["data"] is None, "config.json names it in full, wherever it is read"
    third = path.with_name("third")
    more = ["--more-data", uri, "--data-weights", "3", "1"]
    commands.train(commands.parse("toy", ["tiny", "--data", "some/data", *more, "--run", str(third)]))
    assert seen["data"] == DataSets(
        locations=(str(Path("some/data").absolute()), Storage(uri).location), weights=(3.0, 1.0)
    )
    assert "secret" not in (third / "config.json").read_text()
    assert RunFolder.open(third).data_sets.weights == (3.0, 1.0)
    assert RunFolder.open(path.with_name("other")).data == str(Path("some/data").absolute())
