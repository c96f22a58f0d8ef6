"""Gradients and updates of networks, against copies of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.training import Ranks, lines, recipe, train
from train.config import OptimizerConfig, ParameterGroup, ScheduleConfig
from train.trainer.learner import Learner
from train.trainer.network_norms import GRADIENT, UPDATE, NetworkNorms, network_of

SGD_LIKE: list[dict[str, Any]] = [
    {"name": "adam", "learning_rate": 1e-2},
    {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.3, "eps": 1e-3, "betas": (0.5, 0.9)},
]


def networks() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"one": nn.Linear(4, 3), "two": nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))})


@pytest.mark.parametrize("optimizer", SGD_LIKE)
def test_against_copies(optimizer: dict[str, Any]) -> None:
    module = networks()
    groups = (ParameterGroup(match=r"two\.1", rate=0.1, first=2),)
    learner = Learner(module, OptimizerConfig(**optimizer), ScheduleConfig(), 5, groups)
    norms = NetworkNorms(learner, {"last": r"two\.1"})
    whose = {"one": "one.", "two": "two.0", "last": "two.1"}
    for step in range(4):
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        x = torch.randn(8, 4)
        module["two"](module["one"](x)).square().sum().backward()  # type: ignore[operator]
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        found = norms.gradients()
        learner.update(learner.norms(step), step, torch.tensor(True))
        found |= norms.updates(step)
        after = dict(module.named_parameters())
        assert set(found) == {prefix + name for name in whose for prefix in (GRADIENT, UPDATE)}
        for network, start in whose.items():
            names = [name for name in before if name.startswith(start)]
            gradient = torch.cat([gradients[name].flatten() for name in names]).norm()
            change = torch.cat([(after[name].detach() - before[name]).flatten() for name in names]).norm()
            whole = torch.cat([after[name].detach().flatten() for name in names]).norm()
            assert found[GRADIENT + network] == pytest.approx(float(gradient), rel=1e-5)
            assert found[UPDATE + network] == pytest.approx(float(change / whole), rel=2e-3, abs=1e-9)
            assert (found[UPDATE + network] > 0) == (network != "last" or step >= 2)
        learner.drop()


def test_networks_by_name() -> None:
    named = {"motion_modules": r"\.motion_modules\."}
    assert network_of("denoiser.down_blocks.0.motion_modules.1.weight", named) == "motion_modules"
    assert network_of("denoiser.conv_in.weight", named) == "denoiser"
    assert network_of("weight", {}) == "weight"


def figures(path: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name.startswith((GRADIENT, UPDATE))} for line in lines(path)
    ]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_shards_give_the_same(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    train(tmp_path / "one", recipe())
    ranks.run(train, tmp_path / "two", recipe(parallel={"strategy": strategy}))
    for one, two in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert set(one) == {prefix + name for name in ("blocks", "head") for prefix in (GRADIENT, UPDATE)}
        assert two == pytest.approx(one, rel=1e-3)
        assert all(value > 0 for value in one.values())
