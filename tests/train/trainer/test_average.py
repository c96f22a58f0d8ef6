"""Moving average of the weights, and the module that is exported."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from tests.support import toy_task
from tests.support.training import recipe, train
from train.config import EmaConfig, OptimizerConfig, ScheduleConfig
from train.trainer.average import Ema
from train.trainer.learner import Learner


def ema_of(weight: nn.Parameter, config: EmaConfig) -> Ema:
    module = nn.Module()
    module.register_parameter("w", weight)
    return Ema(Learner(module, OptimizerConfig(), ScheduleConfig(), steps=1000), config)


def test_average_of_known_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = ema_of(weight, EmaConfig(decay=0.75, warmup=False))
    for step, value in enumerate((2.0, 3.0)):
        weight.data.fill_(value)
        ema.update(step, {"w": weight}, torch.tensor(True))
    assert ema.average["w"].item() == 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 3


def test_in_a_skipped_step_no_average_moves() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1 / 3]))
    ema = ema_of(weight, EmaConfig(decay=0.75))
    before = ema.average["w"].clone()
    weight.data.fill_(2.0)
    ema.update(3, {"w": weight}, torch.tensor(False))
    assert torch.equal(ema.average["w"], before)


def test_decay_rises_to_its_value() -> None:
    ema = ema_of(nn.Parameter(torch.zeros(1)), EmaConfig(decay=0.9))
    decays = [ema.decay(step) for step in range(200)]
    assert decays[0] == 0.1 and decays[10] == 11 / 20 and decays[-1] == 0.9
    assert decays == sorted(decays)


def test_without_decay_it_is_the_newest_weights(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", recipe(ema={"decay": 0.0}))
    exported = load_file(tmp_path / "run/out/weights.safetensors")
    assert outcome["ema"] == {}, "no copy is kept, neither in memory nor in a checkpoint"
    assert all(
        torch.equal(outcome["module"][name], value) for name, value in exported.items() if "features" not in name
    )


def test_without_decay_no_tensor_is_made_for_averages(tmp_path: Path) -> None:
    """Neither in memory nor in a checkpoint: counted, not believed."""

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    passed = torch.tensor(True)
    module = toy_task.ToyModel(toy_task.Config())
    learner = Learner(module, OptimizerConfig(), ScheduleConfig(), steps=10)
    made = {}
    for decay in (0.0, 0.9):
        before = alive()
        ema = Ema(learner, EmaConfig(decay=decay))
        ema.update(0, learner.parameters, passed)
        made[decay] = alive() - before
        del ema
    assert made == {0.0: 0, 0.9: len(learner.parameters)}
    stored = {}
    for decay in (0.0, 0.9):
        train(tmp_path / f"{decay}", recipe(ema={"decay": decay}))
        folder = tmp_path / f"{decay}" / "checkpoints" / "step-00000008"
        stored[decay] = set(FileSystemReader(folder).read_metadata().state_dict_metadata)
    averages = stored[0.9] - stored[0.0]
    assert averages == {f"ema.{name}" for name in learner.parameters} and stored[0.0] < stored[0.9]


def test_it_is_not_the_weights_and_keeps_their_memory_apart(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", recipe(ema={"decay": 0.9}))
    assert not any(torch.equal(outcome["module"][name], value) for name, value in outcome["ema"].items())
