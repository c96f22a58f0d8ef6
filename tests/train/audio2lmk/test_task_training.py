"""The speech tasks through the trainer: a killed training goes on, and two ranks train like one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.speech_data import build_speech_data
from tests.support.training import Ranks, assert_same, lines, tensors_of
from train.config import CheckpointConfig, LogConfig, ScheduleConfig, ValidationConfig
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.trainer.loop import Trainer
from train.trainer.port import LocalPort

NAMES = ("audio2mesh", "audio2pose")
STEPS = 5


class Killed(Exception):
    """The process is gone."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data").uri


@pytest.fixture(scope="module", params=NAMES)
def alone(request: pytest.FixtureRequest, data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one rank in a task."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    return train(path, request.param, data) | {"name": request.param, "lines": lines(path)}


def recipe(name: str, strategy: str) -> Recipe:
    base = recipes_of(name)["tiny"]()
    small = {"min_window_frames": 12, "window_frames": 24, "smoothing": 3}
    if name == "audio2pose":
        small |= {"context": 12, "dropout": 0.1, "width": 32, "layers": 1, "feed_forward": 64}
    else:
        small |= {"velocity_weight": 1.0, "lip_weight": 2.0, "hidden": 32}
    train = dataclasses.replace(
        base.train,
        steps=STEPS,
        global_batch=4,
        microbatch=2,
        schedule=ScheduleConfig(name="cosine", warmup_steps=2),
        parallel=dataclasses.replace(base.train.parallel, strategy=strategy),
        checkpoint=CheckpointConfig(every=3, asynchronous=False),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=1, tensorboard=False),
    )
    return Recipe(config=dataclasses.replace(base.config, **small), train=train)


def train(path: Path, name: str, data: str, strategy: str = "ddp", kill_at: int | None = None) -> dict[str, Any]:
    """Train on this rank; `kill_at`: number of steps after which the rank dies in the next one."""
    torch.set_num_threads(1)
    chosen = recipe(name, strategy)
    config = RunConfig(task=name, recipe_name="tiny", recipe=chosen, data=data)
    run = RunFolder(path, config)
    task = make_task(name, chosen.config, data, run.task_folder)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0:
        RunFolder.start(path, config)
        if not run.task_folder.is_dir():
            run.task_folder.mkdir()
            task.prepare()
    if dist.is_initialized():
        dist.barrier()
    trainer = Trainer(task, chosen.train, run, LocalPort(rank=rank, world=world, local_rank=rank, local_world=world))
    loss = task.loss

    def dying(module: Any, batch: Any, **about: Any) -> Any:
        if trainer.step == kill_at:
            raise Killed
        return loss(module, batch, **about)

    task.loss = dying  # type: ignore[method-assign]
    try:
        trainer.fit()
        return tensors_of(trainer)
    finally:
        trainer.close()


def test_a_killed_training_goes_on_with_the_same_bits(alone: dict[str, Any], data: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", alone["name"], data, kill_at=4)
    assert_same(train(tmp_path / "run", alone["name"], data), alone)
    assert [line["loss"] for line in lines(tmp_path / "run")] == [line["loss"] for line in alone["lines"]]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_like_one(
    ranks: Ranks, alone: dict[str, Any], data: str, tmp_path: Path, strategy: str
) -> None:
    first, second = ranks.run(train, tmp_path / "run", alone["name"], data, strategy)
    assert_same(first, second)
    for line, other in zip(lines(tmp_path / "run"), alone["lines"], strict=True):
        for figure in ("loss", "gradient_norm"):
            assert line[figure] == pytest.approx(other[figure], rel=1e-3)
