"""List of all recipes: what each needs, and what it costs as far as that is known without data and weights.

Nothing is estimated: a number that cannot be counted here (its weights are not here, or its networks depend on the
data) is left out.
"""

from __future__ import annotations

import inspect
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from talkinghead.models.image.weights import IMAGE_ENCODERS, VAES
from talkinghead.models.speech.weights import TINY
from train.doctor.footprint import count_text, footprint, size_text
from train.microbatch import microbatch_text
from train.recipe import SHORT_NAMES, TASKS, Recipe, full_name, make_task, recipes_of
from train.task import Task

_BUILT_IN = {TINY, *VAES, *IMAGE_ENCODERS}

_DATA = "none"  # a location that nothing is read from
_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Need:
    """Weights that a recipe begins with."""

    what: str
    setting: str
    """Option that says where they lie."""
    value: str
    """Its value in the recipe."""
    missing: bool
    """Whether there is no such file or folder, as seen from the working folder, nor a built-in of that name."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the networks of a recipe take, in numbers and bytes, by one rank."""

    parameters: int
    trained: int
    memory_bytes: int
    """Weights, gradients, moments and averages."""
    checkpoint_bytes: int


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A recipe."""

    task: str
    short_name: str | None
    recipe: str
    about: str
    """Its docstring."""
    needs: list[Need] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    """Annotation columns that the task says it needs."""
    derived: list[str] = field(default_factory=list)
    """Derived columns that the recipe joins."""
    steps: int
    samples: int
    """Samples of a step."""
    microbatches: str
    """How a step is cut, in words."""
    fitting_ranks: list[int]
    """Numbers of ranks that can share a step."""
    cost: Cost | None = None
    """None: it depends on weights that are not here, or on the data."""
    unknown: str | None = None
    """Why the cost is not known."""


def listing(task: str | None = None) -> list[Listed]:
    """All recipes, or those of a task.

    Raises:
        ValueError: There is no such task.
    """
    if task is not None and full_name(task) not in TASKS:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    names = TASKS if task is None else [full_name(task)]
    return [_listed(name, recipe) for name in names for recipe in recipes_of(name)]


def _listed(name: str, recipe_name: str) -> Listed:
    make = recipes_of(name)[recipe_name]
    recipe = make()
    with tempfile.TemporaryDirectory(prefix="talkinghead-list-") as folder:
        task = make_task(name, recipe.config, _DATA, Path(folder))
        needs = list(_needs(task, recipe))
        try:
            counted = footprint(task, recipe)
            cost = Cost(
                parameters=counted.parameters,
                trained=counted.trained,
                memory_bytes=counted.state_bytes,
                checkpoint_bytes=counted.checkpoint_bytes,
            )
            unknown = None
        except FileNotFoundError:  # what `prepare` would have derived
            cost, unknown = None, "its networks depend on the data: python -m train doctor counts them"
        except ValueError as error:
            cost, unknown = None, "its weights are not here" if any(need.missing for need in needs) else str(error)
    return Listed(
        task=name,
        short_name=next((short for short, full in SHORT_NAMES.items() if full == name), None),
        recipe=recipe_name,
        about=inspect.cleandoc(make.__doc__ or ""),
        needs=needs,
        columns=list(getattr(task, "columns", ())),
        derived=list(getattr(recipe.config, "join", ())),
        steps=recipe.train.steps,
        samples=recipe.train.global_batch,
        microbatches=microbatch_text(recipe.train),
        fitting_ranks=recipe.train.fitting_ranks,
        cost=cost,
        unknown=unknown,
    )


def _needs(task: Task, recipe: Recipe) -> Iterator[Need]:
    for setting, source in task.sources().items():
        value = str(getattr(recipe.config, setting))
        missing = value not in _BUILT_IN and not Path(value).exists()
        yield Need(what=source.what, setting=f"--config.{setting.replace('_', '-')}", value=value, missing=missing)


def table(found: list[Listed], whole: bool = False) -> str:
    """Recipes as lines for people.

    Args:
        found: The recipes.
        whole: Whether to print the whole text about each, rather than its first paragraph. Where the cost cannot be
            counted, the text may tell it.
    """
    lines: list[str] = []
    for one in found:
        short = f" ({one.short_name})" if one.short_name else ""
        lines += [
            f"{one.task}{short} {one.recipe}",
            *_paragraphs(one.about if whole or one.cost is None else one.about.split("\n\n")[0]),
        ]
        for need in one.needs:
            lines.append(f"  needs    {need.what}, {need.setting} {need.value}{' (not here)' * need.missing}")
        if columns := [*one.columns, *one.derived]:
            lines.append(f"  columns  {', '.join(columns)}")
        lines.append(f"  trains   {one.steps:,} steps of {one.samples} samples, in {one.microbatches}")
        lines.append(f"  ranks    {', '.join(map(str, one.fitting_ranks))}")
        if one.cost is None:
            lines.append(f"  takes    not known: {one.unknown}")
        else:
            lines.append(
                f"  takes    {count_text(one.cost.trained)} of {count_text(one.cost.parameters)} parameters trained,"
                f" {size_text(one.cost.memory_bytes)} of memory (activations not counted), checkpoints of"
                f" {size_text(one.cost.checkpoint_bytes)}"
            )
        lines.append("")
    lines.append("every training needs --data DATA and --run RUN; python -m train doctor TASK RECIPE … examines one")
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield textwrap.fill(" ".join(paragraph.split()), _WIDTH, initial_indent="  ", subsequent_indent="  ")
