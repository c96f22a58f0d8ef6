"""Parts that are new in the models from speech, and their own learning rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from talkinghead.files.storage import Storage
from tests.support.speech_data import build_speech_data
from train.config import OptimizerConfig, ScheduleConfig
from train.recipe import make_task, recipes_of
from train.task import Task
from train.trainer.learner import Learner

TASKS = ("audio2mesh", "audio2pose")
NEW = {
    "audio2mesh": {"in_fn", "out_fn"},
    "audio2pose": {"in_fn", "pose_map", "id_embed", "transformer_decoder", "pose_map_r"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


def task_of(name: str, data: Storage, folder: Path, **settings: object) -> Task:
    config = dataclasses.replace(recipes_of(name)["tiny"]().config, **settings)
    folder.mkdir(exist_ok=True)
    task = make_task(name, config, data.uri, folder)
    task.prepare()
    return task


@pytest.mark.parametrize("name", TASKS)
def test_all_but_the_encoder_learns_at_the_rate_of_new_parts(name: str, data: Storage, tmp_path: Path) -> None:
    task = task_of(name, data, tmp_path / "task", new_rate=4.0)
    learner = Learner(task.build(), OptimizerConfig(), ScheduleConfig(), 10, task.parameter_groups())
    new, rest = learner._members
    assert {*new, *rest} == set(learner.parameters)
    assert {parameter.split(".")[0] for parameter in new} == NEW[name]
    assert {parameter.split(".")[0] for parameter in rest} == {"audio_encoder"}
    assert learner.learning_rate(0, 0) == pytest.approx(4 * learner.learning_rate(0))


@pytest.mark.parametrize("name", TASKS)
def test_without_a_rate_or_with_whole_weights_there_is_no_group(name: str, data: Storage, tmp_path: Path) -> None:
    assert task_of(name, data, tmp_path / "task").parameter_groups() == ()
    config = dataclasses.replace(recipes_of(name)["tiny"]().config, new_rate=4.0, init="elsewhere")
    assert make_task(name, config, data.uri, tmp_path / "other").parameter_groups() == ()
    with pytest.raises(ValueError, match="new_rate must be a number above 0"):
        dataclasses.replace(config, new_rate=0.0)
    rates = {recipe: make().config.new_rate for recipe, make in recipes_of(name).items()}
    assert {recipe for recipe, rate in rates.items() if rate != 1} == {"a100x4", "h100x8", "h100x64"}
