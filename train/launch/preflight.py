"""Before a run: whatever can be wrong with settings, data and weights is found while RUN is still as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.recipe import Recipe, make_task
from train.run.run_folder import RunConfig, RunFolder, check_place
from train.task import Provenance


def begin(path: str | Path, config: RunConfig, data: str | None = None) -> RunFolder:
    """Look at what was asked for, then create a run, or go on with the one that stands there if it was started alike.

    Args:
        path: RUN.
        config: What to train on what; weights that it begins with are looked up here.
        data: The data set, when the run's config.json must not name it in full.

    Raises:
        ValueError: Data or weights are missing or do not do, settings make no model, or another run stands there.
    """
    folder = check_place(path) / "task"
    weights = make_task(config.task, config.recipe.config, data or config.data, folder).check()
    recipe = Recipe(config=_with_places(config.recipe.config, weights), train=config.recipe.train)
    return RunFolder.start(path, dataclasses.replace(config, recipe=recipe, weights=weights))


def _with_places(config: Any, weights: Mapping[str, Provenance]) -> Any:
    """The settings with absolute paths of weights: a rank elsewhere has another working folder."""
    places = {name: getattr(config, name) for name, found in weights.items() if found["kind"] in ("folder", "file")}
    return dataclasses.replace(config, **{name: str(Path(place).absolute()) for name, place in places.items()})
