"""config.json of older runs: settings that they lack, and defaults of recipes that have changed since."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from train.recipe import recipes_of
from train.run.run_config import RunConfig, differences

STAGE1, PAPER = "lmk2video-stage1", "paper"
NEWER = {
    "reading": ("at_once", "cache", "cache_gb"),
    "parallel": ("shard_within", "accumulation", "gradients", "deterministic"),
}
"""Settings that a run of before has not, each with a default by which it goes on as it began."""
THEN = {"strategy": "fsdp2", "most_at_once": 2}
"""Defaults of the recipe `paper` of then."""


def asked() -> RunConfig:
    return RunConfig(task=STAGE1, recipe_name=PAPER, recipe=recipes_of(STAGE1)[PAPER](), data="data")


def older() -> dict[str, Any]:
    """Content of config.json of a run that older code began with `paper`."""
    value = copy.deepcopy(json.loads(json.dumps(asked().to_json())))
    train = value["recipe"]["train"]
    for part, names in NEWER.items():
        for name in names:
            del train[part][name]
    train["parallel"] |= THEN
    del value["run_id"]
    return value


def test_an_older_run_opens_with_its_own_settings() -> None:
    found = RunConfig.from_json(older())
    parallel, reading = found.recipe.train.parallel, found.recipe.train.reading
    assert (parallel.strategy, parallel.most_at_once) == ("fsdp2", 2)
    assert (parallel.shard_within, parallel.accumulation, parallel.gradients) == (None, "whole", "fp32")
    assert not parallel.deterministic and reading.cache is None and reading.at_once is None


def test_an_older_run_goes_on_by_the_recipe_of_today() -> None:
    there, now = RunConfig.from_json(older()), asked()
    assert now.recipe.train.parallel.strategy == "ddp"  # the default that has changed
    assert differences(there, now) == []


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_the_precision_of_a_run_stays(precision: str) -> None:
    value = older()
    value["recipe"]["train"]["parallel"]["precision"] = precision
    assert differences(RunConfig.from_json(value), asked()) == [f'train.parallel.precision: "{precision}" -> "bf16"']
