"""Settings that choose the clips of a training: in every task, checked at once, and read from older runs."""

from __future__ import annotations

import dataclasses

import pytest

from shards.selection import Selection
from train.clip_choice import ClipChoice
from train.commands import parse
from train.recipe import TASKS, recipe_from_json, recipe_to_json, recipes_of

OURS = [task for task, module in TASKS.items() if module.startswith("train.")]
_WORDS = """tiny --data d --run r --config.join sync mouth@mouth-0123456789ab --config.at_least sync_confidence=3 a.b=-1
 --config.at_most blinks=20 --config.licence CC0-1.0 --config.person eve adam --config.split_group g
 --config.label emotion=sad emotion=happy view=front"""
WORDS: list[str] = [*_WORDS.split()]


@pytest.mark.parametrize("task", OURS)
def test_every_task_takes_the_rules(task: str) -> None:
    config = parse(task, WORDS).asked.config
    assert config.join == ("sync", "mouth@mouth-0123456789ab")
    rules = {"sync_confidence": 3.0, "a.b": -1.0}, {"blinks": 20.0}
    labels = {"emotion": ("sad", "happy"), "view": ("front",)}
    assert config.selection() == Selection(
        at_least=rules[0],
        at_most=rules[1],
        licence=("CC0-1.0",),
        person=("eve", "adam"),
        split_group=("g",),
        label=labels,
    )
    # Held-out clips are other persons'.
    others = Selection(at_least=rules[0], at_most=rules[1], licence=("CC0-1.0",), label=labels)
    assert config.selection("val") == others
    assert config.arguments("val") == {"split": "val", **others.arguments()}


@pytest.mark.parametrize("task", OURS)
def test_without_rules_all_clips_are_taken(task: str) -> None:
    for make in recipes_of(task).values():
        assert make().config.selection() == Selection()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at_least": ("sync",)}, r"--config\.at_least 'sync': write NAME=VALUE"),
        ({"at_most": ("sync=high",)}, r"--config\.at_most sync=high: 'high' is no number"),
        ({"at_least": ("sync=1", "sync=2")}, "name each score once"),
        ({"at_least": ("sync=nan",)}, "finite number"),
        ({"label": ("=sad",)}, r"--config\.label '=sad': write NAME=VALUE"),
        ({"join": ("",)}, "empty name"),
    ],
)
@pytest.mark.parametrize("task", OURS)
def test_what_is_no_rule_is_one_line(task: str, change: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(recipes_of(task)["tiny"]().config, **change)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ClipChoice(), **change)


@pytest.mark.parametrize("task", OURS)
def test_settings_of_older_runs_have_their_new_names(task: str) -> None:
    recipe = recipes_of(task)["tiny"]()
    recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, person=("eve",)))
    saved = recipe_to_json(recipe)
    older = {name: value for name, value in saved["config"].items() if name not in ClipChoice.__dataclass_fields__}
    older |= {"persons": ["eve"], "annotation": None}
    assert recipe_from_json(task, saved | {"config": older}) == recipe
    with pytest.raises(ValueError, match="no field 'people'"):
        recipe_from_json(task, saved | {"config": older | {"people": ["eve"]}})
