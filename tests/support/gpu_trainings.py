"""Trainings on the bench's device: the `tiny` recipes of all tasks on drawn clips, with steps that are watched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests.support.gpu_bench import Bench, WatchedTrainer
from tests.support.lmk2video_tasks import SMALL
from train.config import CheckpointConfig, LogConfig, TrainConfig, ValidationConfig
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.trainer.port import LocalPort

SETTINGS: dict[str, dict[str, Any]] = {
    **SMALL,
    "audio2mesh": {"window_frames": 24, "min_window_frames": 12, "hidden": 32},
    "audio2pose": {"window_frames": 24, "min_window_frames": 12, "context": 12, "width": 32, "layers": 1},
}
"""What makes each task small."""


def quiet(train: TrainConfig, bench: Bench, *, steps: int, **parallel: Any) -> TrainConfig:
    """Settings of a training on the bench's device, of two microbatches of two samples, that only trains."""
    return dataclasses.replace(
        train,
        steps=steps,
        global_batch=4,
        microbatch=2,
        num_workers=1,
        parallel=bench.parallel(**parallel),
        checkpoint=CheckpointConfig(every=10_000, asynchronous=False),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=10_000, tensorboard=False),
    )


def small_recipe(bench: Bench, task: str, settings: dict[str, Any], *, steps: int = 100, **parallel: Any) -> Recipe:
    """The `tiny` recipe of a task, smaller still."""
    base = recipes_of(task)["tiny"]()
    config = dataclasses.replace(base.config, **(SETTINGS[task] | settings))
    return Recipe(config=config, train=quiet(base.train, bench, steps=steps, **parallel))


def trainer_of(path: Path, task: str, recipe: Recipe, data: str) -> WatchedTrainer:
    """Trainer of a run, new or to go on with."""
    run = RunFolder.start(path, RunConfig(task=task, recipe_name="tiny", recipe=recipe, data=data))
    made = make_task(task, recipe.config, data, run.task_folder)
    if not run.task_folder.is_dir():
        made.check()
        run.task_folder.mkdir()
        made.prepare()
    return WatchedTrainer(made, recipe.train, run, LocalPort())
