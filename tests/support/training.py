"""Trainings of the toy task, in this process or in several ranks that stay up between tests."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shards.loader import ClipLoader
from tests.support import toy_adversary, toy_task
from train.recipe import TASKS, Recipe, make_task
from train.run.run_config import RunConfig
from train.run.run_folder import RunFolder
from train.task import Batch, Losses, Task
from train.trainer.loop import Trainer
from train.trainer.parallel import full
from train.trainer.port import LocalPort

TASKS["toy"] = "tests.support.toy_task"
TASKS["toy-adversary"] = "tests.support.toy_adversary"

PARTS = ("module", "optimizer", "ema", "adversary.module", "adversary.optimizer")


def recipe(toy: dict[str, Any] | None = None, base: Recipe | None = None, **train: Any) -> Recipe:
    """Toy recipe `tiny` with other settings; nested ones as dicts, e.g. `log={"every": 1}`."""
    base = base or toy_task.tiny()
    changed = {
        name: dataclasses.replace(getattr(base.train, name), **value) if isinstance(value, dict) else value
        for name, value in train.items()
    }
    return Recipe(
        config=dataclasses.replace(base.config, **(toy or {})), train=dataclasses.replace(base.train, **changed)
    )


def start(path: Path, chosen: Recipe) -> RunFolder:
    """Run folder, new or to go on with."""
    return RunFolder.start(path, _config(chosen))


def _config(chosen: Recipe) -> RunConfig:
    name = "toy-adversary" if isinstance(chosen.config, toy_adversary.Config) else "toy"
    return RunConfig(task=name, recipe_name="tiny", recipe=chosen, data="none")


def trainer_of(path: Path, chosen: Recipe, **options: Any) -> Trainer:
    """Trainer of this rank; options: `port`, `task`, `run`."""
    torch.set_num_threads(1)  # as `run_worker` sets them; several only wait for each other in so small a model
    run = options.get("run") or RunFolder(path, _config(chosen))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    port = options.get("port") or LocalPort(rank=rank, world=world, local_rank=rank, local_world=world)
    task = options.get("task") or make_task(run.task, chosen.config, "none", run.task_folder)
    return Trainer(task, chosen.train, run, port, chosen.lora)


def train(path: Path, chosen: Recipe, **options: Any) -> dict[str, Any]:
    """Train, export to `path/out`, and return the results. An error is returned, too, as `error`."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        start(path, chosen)
    if dist.is_initialized():
        dist.barrier()
    trainer = trainer_of(path, chosen, **options)
    outcome: dict[str, Any] = {"error": None}
    try:
        trainer.fit()
        (path / "out").mkdir(exist_ok=True)
        trainer.export(path / "out")
    except (ValueError, RuntimeError) as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    finally:
        trainer.close()
    return outcome | tensors_of(trainer) | {"step": trainer.step, "skipped": trainer.guard.total}


def tensors_of(trainer: Trainer) -> dict[str, Any]:
    """Copies of weights, averages and moments, whole even where they are sharded. Collective."""
    state = trainer._state()
    for name, part in state.pop("adversary", {}).items():
        state[f"adversary.{name}"] = part
    return {
        part: {name: full(value).detach().clone() for name, value in state[part].items()}
        for part in PARTS
        if part in state
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: dict[str, Any], two: dict[str, Any], tolerance: float = 0.0) -> None:
    """Assert that weights, averages and moments are equal, bit by bit unless a tolerance is given."""
    assert set(PARTS) & set(one) == set(PARTS) & set(two)
    for part in set(PARTS) & set(one):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(value, two[part][name], rtol=tolerance, atol=tolerance, msg=f"{part} {name}")


class Ranks:
    """Processes with a gloo group, to run functions of any importable module in all of them at once."""

    def __init__(self, world: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            arguments = (rank, world, str(folder / "rendezvous"), theirs)
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.pipes.append(ours)
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """Call a function on every rank; returns the result of each."""
        for pipe in self.pipes:
            pipe.send((function, args, options))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(240), "a rank hangs"
            good, value = pipe.recv()
            assert good, value
            answers.append(value)
        return answers

    def stop(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()


def _serve(rank: int, world: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=240)
    )
    while True:
        try:
            function, args, options = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args, **options)))
        except Exception:  # noqa: BLE001  everything goes to the test that asked
            pipe.send((False, traceback.format_exc()))


def losses_of(task: Task, module: nn.Module, batch: Batch, *, seed: int = 0, step: int = 0) -> Losses:
    """Losses of a microbatch that is a whole step."""
    return task.loss(module, batch, seed=seed, step=step, total={"samples": float(len(batch["keys"]))}).losses


def batches_of(task: Task, size: int, *, seed: int = 0, first: int = 0) -> Iterator[Batch]:
    """Batches of a task's samples, as a single rank would read them, from one of them on."""
    loader = ClipLoader(task.dataset(seed), size)
    loader.load_state_dict({"microbatches": first})
    return iter(loader)
