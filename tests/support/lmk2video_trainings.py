"""Trainings of Lmk2Video in this process, with the `tiny` recipes on images of 32 pixels, without validation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tests.support.lmk2video_tasks import SMALL
from tests.support.training import lines, tensors_of
from train.config import CheckpointConfig, LogConfig, OptimizerConfig, ScheduleConfig, ValidationConfig
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.trainer.loop import Trainer
from train.trainer.port import LocalPort


def small_recipe(name: str, settings: dict[str, Any], *, steps: int = 2, **parallel: Any) -> Recipe:
    """Recipe of two microbatches of two samples.

    Args:
        name: `stage1` or `stage2`.
        settings: Settings of the task.
        steps: Number of steps.
        parallel: Settings of `ParallelConfig`.
    """
    base = recipes_of(name)["tiny"]()
    train = dataclasses.replace(
        base.train,
        steps=steps,
        global_batch=4,
        microbatch=2,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(),
        parallel=dataclasses.replace(base.train.parallel, **parallel),
        checkpoint=CheckpointConfig(every=steps, asynchronous=False),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=1, tensorboard=False),
    )
    return Recipe(config=dataclasses.replace(base.config, **(SMALL[name] | settings)), train=train)


def begun(path: Path, name: str, chosen: Recipe, data: str) -> Trainer:
    """Trainer of a new run, before its first step."""
    torch.set_num_threads(1)
    run = RunFolder.start(path, RunConfig(task=name, recipe_name="tiny", recipe=chosen, data=data))
    task = make_task(name, chosen.config, data, run.task_folder)
    task.check()
    run.task_folder.mkdir()
    task.prepare()
    return Trainer(task, chosen.train, run, LocalPort())


def trained(path: Path, name: str, chosen: Recipe, data: str) -> dict[str, Any]:
    """Train to the end; returns weights, averages and moments (see `tensors_of`), and `lines` of the metrics."""
    trainer = begun(path, name, chosen, data)
    try:
        trainer.fit()
        return tensors_of(trainer) | {"lines": lines(path)}
    finally:
        trainer.close()
