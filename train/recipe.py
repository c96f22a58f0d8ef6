"""Recipes: everything that decides how a run comes out, except the data.

A task is one file, `train/<family>/<task>.py`, which offers `Config` (its settings), `RECIPES` (name → function
returning a `Recipe`) and `make(config, data, folder)` (the `Task`). A resolved recipe is kept in the run folder as JSON
and comes back equal.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talkinghead.config import from_json
from train.config import LoraConfig, TrainConfig
from train.data_sets import DataSets
from train.task import Task

TASKS = {
    "audio2mesh": "train.audio2lmk.audio2mesh",
    "audio2pose": "train.audio2lmk.audio2pose",
    "lmk2video-stage1": "train.lmk2video.stage1",
    "lmk2video-stage2": "train.lmk2video.stage2",
}
"""Name of each task → the module that offers it."""
SHORT_NAMES = {"stage1": "lmk2video-stage1", "stage2": "lmk2video-stage2"}
"""Short name of a task → its name. config.json of older runs has only the short one."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a task and of its training."""

    config: Any
    """Settings of the task: a frozen dataclass."""
    train: TrainConfig
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank additions that are trained instead of the weights; off by default."""


def full_name(task: str) -> str:
    """Name of a task, given that or its short name; any other word comes back unchanged."""
    return SHORT_NAMES.get(task, task)


def recipes_of(task: str) -> Mapping[str, Callable[[], Recipe]]:
    """Recipes of a task by name."""
    return _module(task).RECIPES


def make_task(task: str, config: Any, data: DataSets | str, folder: Path) -> Task:
    """Task over a data set.

    Args:
        task: Name of the task, or its short name.
        config: Settings of the task.
        data: The data sets, or the folder or URI of a single one.
        folder: Folder for what the task derives from the data.
    """
    return _module(task).make(config, DataSets.of(data), folder)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON."""
    return {name: dataclasses.asdict(getattr(recipe, name)) for name in ("config", "train", "lora")}


def recipe_from_json(task: str, value: Mapping[str, Any]) -> Recipe:
    """Inverse of `recipe_to_json`.

    Raises:
        ValueError: Another version wrote it, or the settings refuse a value.
    """
    kind = _module(task).Config
    # Settings that have another name since, under the one that they have now.
    renamed = getattr(kind, "renamed", {})
    config = {renamed.get(name, name): item for name, item in value["config"].items()}
    return Recipe(
        config=from_json(kind, config),
        train=from_json(TrainConfig, value["train"]),
        lora=from_json(LoraConfig, value.get("lora", {})),  # older runs have none
    )


def _module(task: str) -> Any:
    name = full_name(task)
    if name not in TASKS:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    # Imported only when a task is used: each brings its networks and their libraries along.
    return importlib.import_module(TASKS[name])
