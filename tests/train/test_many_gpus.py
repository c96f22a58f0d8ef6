"""Recipes for many GPUs: they start on any number of ranks that fits, and their texts say what they do and cost."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.hollow_tasks import hollow
from train.doctor.footprint import footprint
from train.lmk2video.module import Conditions
from train.many_gpus import MACHINES, UTILISATION, compute_hours, scaled_rate, steps_for
from train.microbatch import settled
from train.recipe import TASKS, Recipe, recipe_from_json, recipe_to_json, recipes_of
from train.trainer.flops import FlopCount

OURS = [task for task, module in TASKS.items() if module.startswith("train.")]
EVERY = [(task, name) for task in OURS for name in recipes_of(task)]
MANY = [(task, name) for task in OURS for name in MACHINES]

FLOPS = {
    "lmk2video-stage1": 5.27e12,
    "lmk2video-stage2": 48.6e12,
    "audio2mesh": 0.2294e12,
    "audio2pose": 0.2728e12,
}
"""Operations of a sample, forward and backward; counted below."""
AGAIN = 64.2e12
"""Those of a window of stage 2 where activations are computed again."""
UNITS = {"hours": 1.0, "minute": 60.0, "minutes": 60.0, "seconds": 3600.0}


def text_of(task: str, name: str) -> str:
    return " ".join((recipes_of(task)[name].__doc__ or "").split())


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_any_number_of_ranks_shares_the_step_or_is_refused_in_one_line(task: str, name: str) -> None:
    train = recipes_of(task)[name]().train
    fitting = []
    for ranks in range(1, 65):
        try:
            found = settled(train, ranks)
        except ValueError as error:
            assert re.fullmatch(
                rf"{ranks} ranks.* cannot share a global batch of \d+: take [^\n]+ or [^\n]+", str(error)
            )
            continue
        fitting.append(ranks)
        assert found.microbatch_size * found.accumulation(ranks) * ranks == train.global_batch
        assert found.microbatch_size <= (train.parallel.most_at_once or train.global_batch)
    assert fitting == [ranks for ranks in train.fitting_ranks if ranks <= 64]
    # Only `tiny` has microbatches of its own, for its bits to stay: all others start on any divisor of the batch.
    if name != "tiny":
        assert fitting == [ranks for ranks in range(1, 65) if train.global_batch % ranks == 0]


@pytest.mark.parametrize(("task", "name"), MANY)
def test_it_starts_on_its_machine_and_never_on_a_cpu(task: str, name: str) -> None:
    recipe, machine = recipes_of(task)[name](), MACHINES[name]
    assert settled(recipe.train, machine.gpus).accumulation(machine.gpus) >= 1
    assert recipe.train.parallel.device == "cuda" and recipe.train.parallel.precision == "bf16"
    assert recipe.train.ema.decay == 0.9999 and 500 <= recipe.train.schedule.warmup_steps <= 1000
    assert recipe.train.schedule.name == "constant"  # so that a run may be made longer
    assert recipe_from_json(task, recipe_to_json(recipe)) == recipe


def test_batches_and_samples_are_those_that_were_published_and_multiples() -> None:
    published = {"lmk2video-stage1": 300_000 * 8, "lmk2video-stage2": 40_000 * 4}
    for task, samples in published.items():
        for name, factor in (("a100x4", 1), ("h100x8", 2), ("h100x64", 4)):
            train = recipes_of(task)[name]().train
            assert train.steps * train.global_batch == factor * samples
    batches = {task: [recipes_of(task)[name]().train.global_batch for name in MACHINES] for task in published}
    assert batches == {"lmk2video-stage1": [64, 128, 256], "lmk2video-stage2": [16, 32, 64]}
    for task in ("audio2mesh", "audio2pose"):
        paper = recipes_of(task)["paper"]().train
        train = recipes_of(task)["a100x4"]().train
        assert train.steps * train.global_batch == paper.steps * paper.global_batch


@given(st.integers(1, 10**8), st.integers(1, 4096))
def test_steps_read_all_samples_and_no_step_more(samples: int, batch: int) -> None:
    steps = steps_for(samples, batch)
    assert steps * batch >= samples > (steps - 1) * batch


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_the_rate_grows_with_the_root_of_the_batch(one: int, two: int) -> None:
    assert scaled_rate(1e-5, one, two) == pytest.approx(1e-5 * math.sqrt(two / one), rel=0.05)
    assert scaled_rate(1e-5, one, one) == 1e-5


# --- their texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "name"), MANY)
def test_the_text_says_steps_batch_rates_and_time(task: str, name: str) -> None:
    recipe, machine, text = recipes_of(task)[name](), MACHINES[name], text_of(task, name)
    train = recipe.train
    rate = f"{train.optimizer.learning_rate:.1e}".replace(".0e", "e").replace("e-0", "e-")
    assert f"{train.steps:,} steps of {train.global_batch}" in text
    assert f": {rate}. " in text and f"{train.schedule.warmup_steps:,} steps" in text
    if (new := getattr(recipe.config, "new_rate", 1.0)) != 1:
        own = f"{new * train.optimizer.learning_rate:.1e}".replace(".0e", "e").replace("e-0", "e-")
        assert f"at 4 times that, {own}." in text and new == 4
    assert f"{machine.gpus} x {machine.peak_flops / 1e12:.0f} TFLOPS" in text and UTILISATION == 0.3
    flops = AGAIN if train.parallel.activation_checkpointing else FLOPS[task]
    said = re.search(r"counted: ([\d.]+) TFLOP a", text)
    assert said is not None and float(said[1]) == pytest.approx(flops / 1e12, rel=0.02)
    time = re.search(r"TFLOPS: ([\d.]+) (hours)|backward: (\d+|a) (minutes?|seconds) at", text)
    assert time is not None
    count, unit = (word for word in time.groups() if word)
    hours = compute_hours(machine, train.steps * train.global_batch, flops)
    shown = hours * UNITS[unit]
    assert abs(float(count.replace("a", "1")) - shown) < max(0.06, 0.03 * shown) or (count == "a" and 0.9 < shown < 1.5)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), MANY)
def test_the_memory_of_a_rank_is_counted(task: str, name: str) -> None:
    """At the published sizes: what the text says of weights, gradients, moments and averages."""
    recipe, ranks = recipes_of(task)[name](), MACHINES[name].gpus
    counted = footprint(hollow(task, recipe), recipe, ranks)
    sharded = recipe.train.parallel.strategy == "fsdp2"
    assert counted.averages_bytes and (ranks == 1 or not sharded or counted.state_bytes < 20e9)
    # Shared out, but for gradients, which are whole until a step's last microbatch.
    shared = counted.state_bytes - counted.gradients_bytes
    total = shared * ranks + 4 * counted.trained if sharded else counted.state_bytes
    digits = 1 if total >= 1e10 or task.startswith("audio") else 0
    assert f"{total / 1e9:.{digits}f} GB" in text_of(task, name)


@pytest.mark.slow
@pytest.mark.parametrize("task", OURS)
def test_operations_are_counted(task: str) -> None:
    recipe = recipes_of(task)["h100x8"]()
    with FakeTensorMode(), FlopCount() as count:
        module = hollow(task, recipe).build().train()
        with torch.autocast("cpu", torch.bfloat16):
            made = module(*inputs_of(task))
        made.float().square().mean().backward()
    assert count.flops == pytest.approx(FLOPS[task], rel=0.005)


def inputs_of(task: str) -> tuple[Any, ...]:
    """Inputs of a network for one sample, without content."""
    if task.startswith("audio"):
        samples, frames = torch.zeros(1, 250 * 640), 250
        pose = (torch.zeros(1, frames, 6), torch.zeros(1, dtype=torch.long))
        return (samples, *pose) if task == "audio2pose" else (samples, frames)
    frames = 16 if task.endswith("2") else 1
    given = Conditions(
        token=torch.zeros(1, 1, 768),
        reference=torch.zeros(1, 4, 64, 64),
        dropped=torch.zeros(1, dtype=torch.bool),
        guidance=torch.zeros(1, frames, 3, 512, 512),
        reference_guidance=torch.zeros(1, 3, 512, 512),
    )
    return torch.zeros(1, frames, 4, 64, 64), torch.zeros(1, dtype=torch.long), given


def test_paper_averages_and_says_so() -> None:
    for task in ("lmk2video-stage1", "lmk2video-stage2"):
        recipe: Recipe = recipes_of(task)["paper"]()
        assert recipe.train.ema.decay == 0.9999 and recipe.train.microbatch is None
        assert "Not published: averages of the weights (decay 0.9999; `--train.ema.decay 0`" in text_of(task, "paper")
        # The rest is as published: no part has a rate of its own.
        assert recipe.train.optimizer.learning_rate == 1e-5 and getattr(recipe.config, "new_rate", 1.0) == 1.0
