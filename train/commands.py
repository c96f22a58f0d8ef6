"""Commands of `python -m train`, next to the trainings: each a function whose arguments are its options."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import tyro
from tyro.extras import SubcommandApp

from shards.manifest import read_manifest
from talkinghead.files.storage import Storage
from train.config import LoraConfig, TrainConfig
from train.data_sets import DataSets
from train.launch.start import LaunchSettings, start
from train.recipe import SHORT_NAMES, TASKS, Recipe, full_name, recipes_of
from train.run.run_config import RunConfig

Run = Annotated[str, tyro.conf.arg(help="Folder of the run, or its s3://…")]
Parent = Annotated[int | None, tyro.conf.arg(help="End when this process ends, and leave the machine to it.")]
Until = Annotated[float | None, tyro.conf.arg(help="Seconds since the epoch at which the training must have ended.")]


def validate(
    run: Run, step: Annotated[int, tyro.conf.arg(help="Step whose weights are validated.")], parent: Parent = None
) -> str:
    """Run the inference pipeline of a step's weights on held-out clips. A training does it by itself."""
    from train.run.run_folder import RunFolder
    from train.run.validation import run_validation

    folder = RunFolder.open(run)
    return str(run_validation(folder, step, folder.data_sets.in_full(), parent))


def overview(run: Run) -> str:
    """Write RUN/index.html: settings, curves, newest validation, where data and weights come from."""
    from train.run.overview import write_overview
    from train.run.run_folder import RunFolder

    folder = RunFolder.open(run)
    folder.refresh()
    write_overview(folder.path)
    return str(folder.overview)


def seen(
    run: tyro.conf.Positional[str],
    person: Annotated[str | None, tyro.conf.arg(help="Person or split group.")] = None,
    keys: Annotated[Path | None, tyro.conf.arg(help="File with keys of samples, one a line.")] = None,
    data: Annotated[tuple[str, ...], tyro.conf.arg(help="Its data sets (default: where the run says).")] = (),
    up_to: Annotated[
        int | None, tyro.conf.arg(help="Steps to count (default: those of the newest checkpoint or logged step).")
    ] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")] = False,
) -> str:
    """Tell which of a person's samples, or of listed ones, a run has learnt from, and in which steps.

    Args:
        run: Folder of the run.
    """
    from shards.removal_records import read_keys
    from train.seen import readings_of, table

    if (person is None) == (keys is None):
        raise ValueError("name a person (--person …) or a file of keys (--keys FILE), one of them")
    asked = read_keys(keys) if keys is not None else None
    found = readings_of(run, person=person, keys=asked, data=data, up_to=up_to)
    return json.dumps(dataclasses.asdict(found), indent=2, sort_keys=True) if as_json else table(found)


def list_recipes(
    task: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(help="Task (default: all, in short).")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")] = False,
) -> str:
    """List the tasks and their recipes: what each needs, and what it costs as far as that can be counted."""
    from train.listing import listing, table

    found = listing(task)
    if as_json:
        return json.dumps([dataclasses.asdict(one) for one in found], indent=2)
    return table(found, whole=task is not None)


list_recipes.__name__ = "list"  # its name on the command line


def worker(run: Run, parent: Parent = None, until: Until = None) -> None:
    """Be one rank of an existing run. The trainings start it, and print the result."""
    from train.launch.ranks import run_rank

    run_rank(run, parent, until)


C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Training(Generic[C]):
    """A training as the command line asks for it: what to train, on which data, where."""

    data: str
    """Data set: a folder, or a URI such as s3://bucket/folder."""
    run: str
    """Folder of the run, or s3://bucket/folder: created, or continued when it was started with the same settings."""
    more_data: tuple[str, ...] = ()
    """Further data sets to draw from, too."""
    data_weights: tuple[float, ...] = ()
    """How often each data set is drawn from, that of --data first (default: by the number of its samples)."""
    where: tyro.conf.OmitArgPrefixes[LaunchSettings]
    config: C
    """Settings of the task."""
    train: TrainConfig
    lora: LoraConfig


@dataclass(frozen=True, kw_only=True)
class Examined(Training[C], Generic[C]):
    """A training that is examined rather than started."""

    json: bool = False
    """Print JSON."""


DOCTOR = "Say whether a training would start, and what it takes: TASK RECIPE, with the options of the training."
"""Help of the command `doctor`."""


def describe_task(task: str) -> str:
    """One line about what a task trains, with its short name if it has one."""
    name = full_name(task)
    # From the source text: importing all tasks for the help would load torch and their networks.
    spec = importlib.util.find_spec(TASKS[name])
    assert spec is not None and spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or name
    short = [f" Short: {known}." for known, meant in SHORT_NAMES.items() if meant == name]
    return text.splitlines()[0] + "".join(short)


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

    task: str
    recipe: str
    asked: Training[Any]


def train(request: Request) -> str:
    """Train, and return where the weights are.

    Raises:
        RunFailed: The training ended early.
        ValueError: The settings, the data or the folder do not allow to start it.
    """
    config, secret = run_of(request)
    run = start(request.asked.run, config, request.asked.where, secret)
    return run.describe(run.export)


def run_of(request: Request) -> tuple[RunConfig, DataSets | None]:
    """Run that is asked for, and the locations of its data where those hold credentials, else None.

    Raises:
        ValueError: No data set is named, or it cannot be reached.
    """
    asked = request.asked
    if not asked.data.strip():
        raise ValueError("--data is empty: name the folder or URI of the data set")
    storages = [Storage(location) for location in (asked.data, *asked.more_data)]
    # config.json names the data set without credentials, since it is copied and shown.
    config = RunConfig(
        task=request.task,
        recipe_name=request.recipe,
        recipe=Recipe(config=asked.config, train=asked.train, lora=asked.lora),
        data=_shown(storages[0]),
        more_data=tuple(map(_shown, storages[1:])),
        data_weights=asked.data_weights,
        annotation=_annotation(storages[0], asked.config),
    )
    # The locations with credentials, if they have any, reach the ranks by another way and are written nowhere.
    places = DataSets(locations=tuple(storage.location for storage in storages), weights=asked.data_weights)
    secret = places if places != config.data_sets else None
    return config, secret


def _shown(storage: Storage) -> str:
    """Location of a data set without credentials."""
    return str(storage.local_root or storage.uri)


def doctor(request: Request) -> tuple[str, str | None]:
    """Examine a training before it starts.

    Args:
        request: The training, as `parse` makes it with `kind=Examined`.

    Returns:
        The report, and what does not fit, None where everything does.

    Raises:
        ValueError: The examination itself cannot be done.
    """
    from train.doctor.examination import examine
    from train.doctor.report import report

    asked = request.asked
    assert isinstance(asked, Examined)
    config, secret = run_of(request)
    found = examine(asked.run, config, asked.where, secret)
    text = json.dumps(dataclasses.asdict(found), indent=2) if asked.json else report(found)
    return text, next(iter(found.problems), None)


def parse(task: str, arguments: list[str], prog: str = "python -m train", kind: Any = Training) -> Request:
    """Parse the arguments after a task's name: the recipe and its options.

    Args:
        task: Name of the task.
        arguments: What follows it.
        prog: Beginning of the command line, for the help.
        kind: `Training`, or a class with further options.

    Raises:
        ValueError: There is no such recipe.
        SystemExit: Help was asked for, or an option is wrong; both are printed.
    """
    recipes = recipes_of(task)
    prog = f"{prog} {task}"
    if arguments and not arguments[0].startswith("-") and arguments[0] not in recipes:
        raise ValueError(f"there is no recipe {arguments[0]!r} of {task}, only {', '.join(recipes)}")
    # No recipe named, or --help before it: the help lists the recipes.
    if not arguments or arguments[0] not in recipes:
        _explain(prog, task, arguments)
    # The recipe's values are the defaults of all options.
    name = arguments[0]
    recipe = recipes[name]()
    asked = tyro.cli(
        kind[type(recipe.config)],
        prog=f"{prog} {name}",
        description=_text(recipes[name]),
        default=_default(recipe, kind),
        args=arguments[1:],
    )
    return Request(full_name(task), name, asked)


def _explain(prog: str, task: str, arguments: list[str]) -> NoReturn:
    """Print the help that lists the recipes, or the error that none is named, and exit."""
    # tyro makes this help from subcommands; they are never called, since no argument names one of them.
    app = SubcommandApp()
    for name, make in recipes_of(task).items():
        app.command(name=name, help=_text(make))(_stand_in)
    app.cli(prog=prog, description=f"{describe_task(task)}\n\n{prog} RECIPE --help lists the options.", args=arguments)
    raise AssertionError("tyro accepted a command line without a recipe")


def _stand_in() -> None:
    raise AssertionError("a recipe parses its own arguments")


def _default(recipe: Recipe, kind: Any) -> Training[Any]:
    return kind(
        data=tyro.MISSING,
        run=tyro.MISSING,
        where=LaunchSettings(),
        config=recipe.config,
        train=recipe.train,
        lora=recipe.lora,
    )


def _text(make: Any) -> str:
    return inspect.cleandoc(make.__doc__ or "")


def _annotation(storage: Storage, config: Any) -> Mapping[str, str]:
    """Version and index of the annotations that a run begins with, as far as the data set says."""
    try:
        entry = read_manifest(storage).annotation(getattr(config, "annotation", None))
    except FileNotFoundError:
        return {}  # whether it needs a data set, the task knows
    return {"version": entry.version, "index_sha256": entry.index_sha256}
