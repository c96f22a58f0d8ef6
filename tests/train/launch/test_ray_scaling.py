"""Numbers of workers that Ray Train takes: those that can share a step; and what a lost worker costs."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from safetensors.torch import load_file

from tests.support import toy_task
from tests.support.paths import ROOT
from tests.support.ray_head import Head, ray_head
from tests.support.train_commands import SITE, run_train, start_train, toy, wait_for
from train.config import TrainConfig
from train.launch.ray_scaling import FittingWorkers
from train.launch.start import LaunchSettings
from train.microbatch import settled
from train.recipe import Recipe, recipes_of


def numbers_of(batch: int, workers: int, least: int | None) -> list[int]:
    train = settled(TrainConfig(steps=1, global_batch=batch), workers)
    return LaunchSettings(launch="ray", workers=workers, min_workers=least).numbers(train)


@given(st.integers(1, 16), st.integers(1, 40), st.data())
def test_the_largest_fitting_number_that_can_be_had_is_taken(workers: int, room: int, data: st.DataObject) -> None:
    batch = workers * data.draw(st.integers(1, 8))
    least = data.draw(st.integers(1, workers))
    numbers = numbers_of(batch, workers, least)
    assert numbers[-1] == workers and all(least <= number for number in numbers)
    policy = FittingWorkers(ScalingConfig(num_workers=(numbers[0], workers)), numbers)
    nodes = {"one": {"CPU": float(room // 2)}, "two": {"CPU": float(room - room // 2)}}
    taken = policy._count_possible_workers(nodes)
    fitting = [number for number in numbers if number <= room]
    assert taken == (fitting[-1] if fitting else 0)
    # Every microbatch of the step settled for all workers goes to one of them.
    if taken:
        assert settled(TrainConfig(steps=1, global_batch=batch), workers).accumulation(taken) >= 1


def test_what_no_number_fits_is_refused_before_anything_is_started() -> None:
    recipe = Recipe(config=None, train=TrainConfig(steps=1, global_batch=8))
    assert LaunchSettings(launch="ray", workers=4, min_workers=1).launcher(recipe) == "ray"
    with pytest.raises(ValueError) as caught:
        LaunchSettings(launch="ray", workers=4, min_workers=3).launcher(recipe)
    assert str(caught.value) == (
        "--min-workers is 3, and no number of ranks from there to 3 divides the microbatches of a step, as 4 do: take a"
        " smaller --min-workers, or leave it out"
    )
    with pytest.raises(ValueError, match="3 ranks cannot share a global batch of 8"):
        LaunchSettings(launch="ray", workers=3, min_workers=2).launcher(recipe)
    for task in ("stage1", "stage2", "audio2mesh", "audio2pose"):
        train = settled(recipes_of(task)["h100x64"]().train, 64)
        assert LaunchSettings(launch="ray", workers=64, min_workers=5).numbers(train) == [8, 16, 32, 64]


def test_ray_asks_the_methods_that_are_overridden() -> None:
    """What Ray Train keeps to itself: found out here when a release changes it."""
    source = inspect.getsource(ElasticScalingPolicy)
    assert source.count("self._count_possible_workers(reserved_resources)") == 2  # to begin, and while it runs
    assert list(inspect.signature(ElasticScalingPolicy._count_possible_workers).parameters)[1:] == [
        "reserved_resources"
    ]
    fit = inspect.getsource(TorchTrainer.fit)
    assert "self._initialize_and_run_controller(" in fit and "scaling_policy=create_scaling_policy(" in fit


# --- on a real Ray ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_cpus() -> Iterator[Head]:
    """Cluster with room for three workers."""
    with ray_head(cpus=3, PYTHONPATH=os.pathsep.join([SITE, str(ROOT)])) as found:
        yield found


STEPS = ("--train.steps", 60, "--train.checkpoint.every", 7, "--train.global-batch", 4, "--train.microbatch", "None")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks_with_room_for_three_train_as_two_and_lose_only_what_came_after_a_checkpoint(
    three_cpus: Head, tmp_path: Path
) -> None:
    """Three would not divide the four microbatches. One of the two is killed on the way."""
    run = tmp_path / "run"
    slowly = ("--config.step-s", 0.2)  # time enough to be killed in
    arguments = [*STEPS, *slowly, "--workers", 4, "--min-workers", 1, "--launch", "ray"]
    command = start_train(tmp_path / "out", *toy(run, *arguments), **three_cpus.variables())
    wait_for(lambda: (run / "checkpoints" / "step-00000028").exists() or command.process.exitcode is not None)
    assert command.process.exitcode is None, command.stderr
    assert sorted(file.name for file in (run / "logs").glob("rank-*.log")) == ["rank-0.log", "rank-1.log"]
    os.kill(int((run / ".lock").read_text().split()[1]), signal.SIGKILL)
    done = max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())
    assert command.wait(300) == 0, command.stderr
    went_on = int(re.findall(r"going on from step (\d+)", command.stderr)[-1])
    assert done - 7 <= went_on and went_on >= 28
    # What it lost is done again: it ends with the weights of one rank that nobody disturbed, but for the last bits.
    whole = run_train(tmp_path / "whole", *toy(tmp_path / "other", *STEPS, *slowly[:1], 0))
    assert whole.process.exitcode == 0
    one, two = (load_file(place / "pretrained_model" / toy_task.WEIGHTS) for place in (run, tmp_path / "other"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_without_gpus_is_refused_before_the_run_exists(three_cpus: Head, tmp_path: Path) -> None:
    options = ["--train.parallel.device", "cuda", "--launch", "ray"]
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", *options), **three_cpus.variables())
    assert done.process.exitcode == 2 and not (tmp_path / "run").exists()
    (line,) = done.errors
    assert "parallel.device is cuda, and the Ray cluster at 127.0.0.1" in line and "has no GPU" in line
