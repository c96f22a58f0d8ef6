"""Parts that are new in stage 1, and their own learning rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from train.config import OptimizerConfig, ScheduleConfig
from train.data_sets import DataSets
from train.lmk2video.stage1 import Stage1Task
from train.recipe import recipes_of
from train.trainer.learner import Learner


def task_of(tmp_path: Path, **settings: Any) -> Stage1Task:
    """Stage 1's `tiny` with other settings."""
    config = dataclasses.replace(recipes_of("stage1")["tiny"]().config, width=32, height=32, **settings)
    return Stage1Task(config, DataSets.of("none"), tmp_path)


def learner_of(task: Stage1Task) -> Learner:
    optimizer = OptimizerConfig(learning_rate=1e-3)
    return Learner(task.build(), optimizer, ScheduleConfig(warmup_steps=10), 100, task.parameter_groups())


def test_the_pose_guider_and_nothing_else_learns_at_the_rate_of_new_parts(tmp_path: Path) -> None:
    learner = learner_of(task_of(tmp_path, new_rate=4.0))
    new, rest = learner._members
    assert set(new) == {name for name in learner.parameters if name.startswith("pose_guider.")}
    assert {*new, *rest} == set(learner.parameters)
    assert all(name.startswith(("denoiser.", "reference_net.")) for name in rest) and rest
    # All layers that begin at zero are among them.
    zeros = [n for n in learner.parameters if n.endswith(".weight") and not torch.any(learner.parameters[n])]
    assert {name.split(".")[1] for name in zeros} == {"output_layers", "reference_attentions"} and set(zeros) <= set(
        new
    )
    # From the first step of the warm-up on it is four times the others'.
    for step in (0, 5, 50):
        assert learner.learning_rate(step, 0) == pytest.approx(4 * learner.learning_rate(step))


@pytest.mark.parametrize("settings", [{}, {"new_rate": 1.0}, {"new_rate": 4.0, "init": "elsewhere"}])
def test_without_a_rate_or_with_whole_weights_there_is_no_group(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert task_of(tmp_path, **settings).parameter_groups() == ()


def test_older_recipes_have_none_and_new_ones_do() -> None:
    rates = {name: make().config.new_rate for name, make in recipes_of("stage1").items()}
    assert rates == {"tiny": 1.0, "small": 1.0, "paper": 1.0, "a100x4": 4.0, "h100x8": 4.0, "h100x64": 4.0}
    # In stage 2 all that is trained begins as AnimateDiff's.
    assert not hasattr(recipes_of("stage2")["h100x8"]().config, "new_rate")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_makes_no_sense_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="new_rate must be a number above 0"):
        task_of(tmp_path, new_rate=rate)
