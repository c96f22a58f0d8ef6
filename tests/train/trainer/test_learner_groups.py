"""Groups of parameters in a training: when they move and stand still, and whose gradient is limited by what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.toy_task import Config, ToyModel, ToyTask
from tests.support.training import Ranks, assert_same, lines, recipe, start, tensors_of, train, trainer_of
from train.config import OptimizerConfig, ParameterGroup, ScheduleConfig
from train.recipe import Recipe
from train.trainer.learner import Learner

HEAD = ParameterGroup(match=r"^head\.", first=2, last=4)
STEPS = 7


class Grouped(ToyTask):
    """Toy with groups of parameters."""

    def __init__(self, config: Config, *groups: ParameterGroup) -> None:
        super().__init__(config, "none", Path())
        self.groups = groups

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        return self.groups


def chosen(**toy: Any) -> Recipe:
    return recipe(
        toy,
        steps=STEPS,
        optimizer={"weight_decay": 0.1},
        ema={"decay": 0.9},
        log={"every": 1},
        checkpoint={"every": 3},
    )


def of_the_head(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {
        f"{part} {name}": value
        for part in ("module", "optimizer", "ema")
        for name, value in tensors[part].items()
        if "head." in name
    }


def states(path: Path, settings: Recipe, *groups: ParameterGroup) -> list[dict[str, Any]]:
    """Weights, moments and averages before each step, and after the last one."""
    task = Grouped(settings.config, *groups)
    start(path, settings)
    trainer = trainer_of(path, settings, task=task)
    found = [tensors_of(trainer)]
    after = trainer._after_step

    def noting() -> None:
        found.append(tensors_of(trainer))
        after()

    trainer._after_step = noting  # type: ignore[method-assign]
    trainer.fit()
    trainer.close()
    return found


def test_outside_of_its_steps_a_group_stands_still(tmp_path: Path) -> None:
    """Weights, moments, counts of updates and averages, bit by bit, although the rest decays and moves."""
    found = states(tmp_path / "run", chosen(), HEAD)
    assert len(found) == STEPS + 1
    for step in range(STEPS):
        before, after = of_the_head(found[step]), of_the_head(found[step + 1])
        assert len(before) == 2 * 5, "weight and bias: itself, its average, two moments, a count"
        for name, value in before.items():
            assert torch.equal(value, after[name]) is not (2 <= step <= 4), f"{name} in step {step}"
        rest = "blocks.0.linear.weight"
        for part in ("module", "ema"):
            assert not torch.equal(found[step][part][rest], found[step + 1][part][rest])


def test_a_skipped_step_moves_no_group_and_its_time_goes_on(tmp_path: Path) -> None:
    """Steps are counted, not updates: the group ends at its last step, though one was skipped."""
    found = states(tmp_path / "run", chosen(bad_loss=(4 * 3,)), HEAD)
    assert_same(found[4], found[3])
    last = {name: value for name, value in of_the_head(found[-1]).items() if name.endswith("step")}
    assert [int(value) for value in last.values()] == [2, 2]


def test_killed_within_and_after_its_steps_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    settings = chosen(dropout=0.2)
    whole = train(tmp_path / "whole", settings, task=Grouped(settings.config, HEAD))
    for steps in (3, 6):
        part = dataclasses.replace(settings, train=dataclasses.replace(settings.train, steps=steps))
        path = tmp_path / f"{steps}"
        train(path, part, task=Grouped(settings.config, HEAD))
        assert_same(train(path, settings, task=Grouped(settings.config, HEAD)), whole)


def train_groups(path: Path, settings: Recipe) -> dict[str, Any]:
    """Train with a group that has steps of its own, and one with a limit of its own."""
    norm = ParameterGroup(match="norm", max_gradient_norm=0.01, rate=3.0)
    return train(path, settings, task=Grouped(settings.config, HEAD, norm))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_groups_like_one(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    alone = train_groups(tmp_path / "1", chosen())
    settings = chosen()
    parallel = dataclasses.replace(settings.train.parallel, strategy=strategy)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, parallel=parallel))
    first, second = ranks.run(train_groups, tmp_path / "2", settings)
    assert alone["error"] is None and first["error"] is None
    assert_same(first, second)
    assert_same(first, alone, 2e-5)
    for line, other in zip(lines(tmp_path / "2"), lines(tmp_path / "1"), strict=True):
        assert line["gradient_norm/norm"] == pytest.approx(other["gradient_norm/norm"], rel=1e-4)


@pytest.mark.parametrize(("common", "own"), [(0.5, 0.25), (None, 0.25), (0.5, 1e6), (1e6, 0.25)])
def test_a_groups_own_limit_and_the_common_one_know_nothing_of_each_other(common: float | None, own: float) -> None:
    group = ParameterGroup(match="norm", max_gradient_norm=own)
    optimizer = OptimizerConfig(max_gradient_norm=common)
    learner = Learner(ToyModel(Config()), optimizer, ScheduleConfig(), 10, (HEAD, group))
    torch.manual_seed(0)
    gradients = {name: torch.randn_like(p) for name, p in learner.parameters.items()}
    for name, parameter in learner.parameters.items():
        parameter.grad = gradients[name].clone()
    kept = {name: p.grad for name, p in learner.parameters.items()}  # an update takes away what it does not use
    learner.update(learner.norms(2), 2, torch.tensor(True))
    for limit, names in (
        (own, {name for name in gradients if "norm" in name}),
        (common, {name for name in gradients if "norm" not in name}),  # the head counts in common while it learns
    ):
        norm = float(torch.stack([gradients[name].norm() for name in names]).norm())
        factor = 1.0 if limit is None else min(1.0, limit / norm)
        for name in names:
            assert kept[name] is not None
            torch.testing.assert_close(kept[name], gradients[name] * factor, rtol=1e-5, atol=1e-7, msg=name)


def test_a_gradient_outside_of_its_steps_does_not_count_in_the_common_norm() -> None:
    """Or it would scale down those that are used."""
    learner = Learner(ToyModel(Config()), OptimizerConfig(), ScheduleConfig(), 10, (HEAD,))
    for name, parameter in learner.parameters.items():
        parameter.grad = torch.full_like(parameter, torch.nan if "head" in name else 0.1)
    count = sum(p.numel() for name, p in learner.parameters.items() if "head" not in name)
    assert learner.norms(1) == {"gradient_norm": pytest.approx(0.1 * count**0.5)}


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (ParameterGroup(match="tail"), "the group of parameters 'tail' has none"),
        (ParameterGroup(match="features"), "nothing that is trained has such a name"),
        (ParameterGroup(match="head", first=STEPS), "from step 7 on, and the training has 7 steps: take more steps"),
    ],
)
def test_a_group_that_never_runs_is_one_line(tmp_path: Path, group: ParameterGroup, words: str) -> None:
    settings = chosen()
    start(tmp_path / "run", settings)
    with pytest.raises(ValueError, match=words) as error:
        trainer_of(tmp_path / "run", settings, task=Grouped(settings.config, group))
    assert "\n" not in str(error.value)
