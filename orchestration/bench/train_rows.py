"""Rows about training Audio2Mesh at its published size from shards: against a bare loop, and its wait for data."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch

from orchestration.bench.row import Row
from shards.loader import ClipLoader
from talkinghead.files.storage import Storage
from train.config import CheckpointConfig, LogConfig, ValidationConfig
from train.launch.start import LaunchSettings, start
from train.recipe import Recipe, make_task, recipes_of
from train.run.run_config import RunConfig

TASK = "audio2mesh"
STEPS = 6
BATCH = 2
WINDOW = 75
"""Frames of a window: 3 s."""


def train_rows(data: Storage, folder: Path) -> list[Row]:
    """Measure two rows on one short training.

    Args:
        data: DATA, a packed and annotated data set with speech.
        folder: Empty folder to work in.
    """
    # Train by the whole way of a user, in this process; the run's own metrics say how long each step took.
    recipe = _recipe(folder)
    run = start(folder / "run", RunConfig(task=TASK, recipe_name="paper", recipe=recipe, data=data.uri), _LOCAL)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steady = [line for line in lines if line.get("step", 0) > 1 and "step_s" in line]  # the first one warms up
    # The same task and batch without anything around the step.
    step_s = statistics.median(line["step_s"] for line in steady)
    bare_s = _bare_loop(recipe, data, run.path / "task")
    size = f"wav2vec2-base size, {BATCH} windows of {WINDOW} frames, float32"
    return [
        Row(
            name="train_throughput",
            ours=BATCH / step_s,
            baseline=BATCH / bare_s,
            unit="windows/s",
            better="higher",
            goal=0.9,
            note=f"Audio2Mesh, {size}; ours reads shards, guards, averages, clips and logs, the baseline is forward,"
            " backward and Adam on a batch in memory",
        ),
        Row(
            name="train_data_wait",
            ours=statistics.median(line["data_wait"] * line["step_s"] for line in steady),
            baseline=step_s,
            unit="s per step",
            better="lower",
            goal=0.05,
            note=f"the same run: the time that a step waits for its batch, against the whole step; {size}",
        ),
    ]


_LOCAL = LaunchSettings(launch="local")


def _recipe(folder: Path) -> Recipe:
    """The published recipe for a few steps, with random weights in the speech encoder."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    # Weights in the folder that the recipe reads them from; their values do not change the work.
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder / "wav2vec2-base-random")
    recipe = recipes_of(TASK)["paper"]()
    config = dataclasses.replace(
        recipe.config,
        wav2vec=str(folder / "wav2vec2-base-random"),
        window_frames=WINDOW,
        min_window_frames=None,
    )
    train = dataclasses.replace(
        recipe.train,
        steps=STEPS,
        global_batch=BATCH,
        microbatch=BATCH,
        checkpoint=CheckpointConfig(every=STEPS, keep=1),
        validation=ValidationConfig(every=0),
        log=LogConfig(every=1, tensorboard=False),
    )
    return Recipe(config=config, train=train)


def _bare_loop(recipe: Recipe, data: Storage, derived: Path) -> float:
    """Median time in seconds of a step in the plainest loop: forward, backward, Adam."""
    task = make_task(TASK, recipe.config, data.uri, derived)
    module = task.build().train()
    optimizer = torch.optim.Adam(
        [p for p in module.parameters() if p.requires_grad], recipe.train.optimizer.learning_rate
    )
    # One batch in memory, again and again: no loading, and nothing that the trainer checks, averages or logs.
    batch = next(iter(ClipLoader(task.dataset(seed=0), BATCH)))
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        task.loss(module, batch, seed=0, step=0, total={"samples": BATCH}).losses["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])  # the first step warms up
