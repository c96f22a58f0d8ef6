"""Lmk2Video through the trainer: a killed training goes on, two ranks train like one, and stage 2 follows stage 1."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.face_clips import build_face_data
from tests.support.lmk2video_tasks import SMALL
from tests.support.train_commands import run_train, start_train, wait_for
from tests.support.training import Ranks, assert_same, lines, tensors_of
from train.config import CheckpointConfig, LogConfig, OptimizerConfig, ScheduleConfig, ValidationConfig
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.trainer.loop import Trainer
from train.trainer.port import LocalPort

STEPS = 3

pytestmark = pytest.mark.slow  # checkpoints of thousands of tensors


class Killed(Exception):
    """The process is gone."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data").uri


@pytest.fixture(scope="module")
def begun(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Stage 1, and its export for stage 2 to begin from."""
    path = tmp_path_factory.mktemp("stage1") / "run"
    outcome = train(path, recipe("stage1", None), data, export=True)
    return outcome | {"path": str(path), "lines": lines(path)}


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def alone(
    request: pytest.FixtureRequest, begun: dict[str, Any], data: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Results of one rank in a stage."""
    if request.param == "stage1":
        return begun | {"name": "stage1", "begun": None}
    path = tmp_path_factory.mktemp("stage2") / "run"
    second = train(path, recipe("stage2", begun["path"]), data)
    return second | {"name": "stage2", "begun": begun["path"], "lines": lines(path)}


def recipe(name: str, stage1: str | None, strategy: str = "ddp") -> Recipe:
    base = recipes_of(name)["tiny"]()
    small = SMALL[name] | {"drop_both": 0.3}
    if stage1 is not None and name == "stage2":
        small |= {"stage1": stage1}
    train = dataclasses.replace(
        base.train,
        steps=STEPS,
        global_batch=4,
        microbatch=2,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        schedule=ScheduleConfig(warmup_steps=2),
        parallel=dataclasses.replace(base.train.parallel, strategy=strategy),
        checkpoint=CheckpointConfig(every=2, asynchronous=False),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=1, tensorboard=False),
    )
    return Recipe(config=dataclasses.replace(base.config, **small), train=train)


def train(path: Path, chosen: Recipe, data: str, *, kill_at: int | None = None, export: bool = False) -> dict[str, Any]:
    """Train on this rank; `kill_at`: number of steps after which the rank dies in the next one."""
    torch.set_num_threads(1)
    name = "stage2" if hasattr(chosen.config, "stage1") else "stage1"
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
        if export:
            run.export.mkdir()
            trainer.export(run.export)
        return tensors_of(trainer)
    finally:
        trainer.close()


def test_a_killed_training_goes_on_with_the_same_bits(alone: dict[str, Any], data: str, tmp_path: Path) -> None:
    chosen = recipe(alone["name"], alone["begun"])
    with pytest.raises(Killed):
        train(tmp_path / "run", chosen, data, kill_at=2)
    assert_same(train(tmp_path / "run", chosen, data), alone)
    assert [line["loss"] for line in lines(tmp_path / "run")] == [line["loss"] for line in alone["lines"]]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_like_one(
    ranks: Ranks, alone: dict[str, Any], data: str, tmp_path: Path, strategy: str
) -> None:
    chosen = recipe(alone["name"], alone["begun"], strategy)
    chosen = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, steps=2))
    first, second = ranks.run(train, tmp_path / "run", chosen, data)
    assert_same(first, second)
    for line, other in zip(lines(tmp_path / "run"), alone["lines"][:2], strict=True):
        for figure in ("loss", "velocity_mse", "gradient_norm"):
            assert line[figure] == pytest.approx(other[figure], rel=2e-3)


def test_the_command_survives_a_sigkill(data: str, tmp_path: Path) -> None:
    """Killed for real in the middle of stage 1 and started again, it ends with the same weights as unbroken."""
    options = ["--config.width", 32, "--config.height", 32, "--train.steps", 12, "--train.checkpoint.every", 3]
    options += ["--train.validation.every", 0, "--train.log.every", 1, "--train.log.no-tensorboard"]

    def arguments(run: Path) -> list[Any]:
        return ["stage1", "tiny", "--data", data, "--run", run, *options]

    assert run_train(tmp_path / "a", *arguments(tmp_path / "whole")).errors == []
    command = start_train(tmp_path / "b", *arguments(tmp_path / "broken"))
    wait_for(lambda: any((tmp_path / "broken" / "checkpoints").glob("step-*")))
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert not (tmp_path / "broken" / "pretrained_model").exists()
    # As older code would have written it, which knew the short name only.
    config = tmp_path / "broken" / "config.json"
    config.write_text(config.read_text().replace('"lmk2video-stage1"', '"stage1"'))
    again = run_train(tmp_path / "c", *arguments(tmp_path / "broken"))
    assert again.errors == [] and "going on from step" in again.stderr
    for file in (config, tmp_path / "broken" / "pretrained_model" / "training.json"):
        assert json.loads(file.read_text())["task"] == "lmk2video-stage1"
    for part in ("denoiser", "reference_net", "pose_guider"):
        file = Path("pretrained_model") / part / "diffusion_pytorch_model.safetensors"
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
