"""RUN, the folder of one training: everything that it leaves, and what it needs to go on.

config.json                 task, recipe, data, versions: everything that decides how the run comes out
task/                       what the task derived from the data
checkpoints/step-00001000/  state to resume from; checkpoints/last names the newest
metrics.jsonl               figures, a line for every few steps; also in tensorboard/
validation/step-00001000/   figures, plots and videos of held-out clips
pretrained_model/           averaged weights, ready to use
index.html                  overview
logs/                       log of each rank, with the traceback of the error that ended it
.lock                       held by rank 0 while a training runs
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talkinghead.config import shown
from talkinghead.files.atomic import sweep, write_whole
from talkinghead.files.foreign import parse_json, read_limited, warn_of_owner
from talkinghead.provenance import library_versions, pretty_json
from train.data_sets import DataSets
from train.recipe import Recipe, full_name, make_task, recipe_from_json, recipe_to_json
from train.run.run_lock import LOCK, locked, refuse_strange
from train.task import Provenance

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "numpy", "transformers", "diffusers", "talkinghead")
CONFIG = "config.json"
_FORMAT = 1
_CONFIG_BYTES = 1 << 20
_FREE = ("num_workers", "microbatch", "parallel", "guard", "checkpoint", "validation", "log")
"""Training settings that may change between two starts: they decide how fast and how often, not what is learnt (but for
the last bits of sums). Two exceptions are compared: the precision in `parallel`, and `microbatch` under dropout, whose
masks are drawn for a microbatch as a whole, and where samples depend on their neighbours (`independent` of the task's
Config is False). Settings of a task that may change are named by `free_settings` of its Config."""
_OURS = {"logs", LOCK}
_PROVENANCE = {"kind", "name", "sha256"}
_STEP_FOLDER = re.compile(r"step-(\d{8}|[1-9]\d{8,17})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides how a run comes out; the content of config.json."""

    task: str
    """Name of the task; a short name is replaced by it."""
    recipe_name: str
    recipe: Recipe
    data: str
    """Folder or URI of the data set, without credentials."""
    more_data: tuple[str, ...] = ()
    """Further data sets that are drawn from, too."""
    data_weights: tuple[float, ...] = ()
    """How often each data set is drawn from; see `train.data_sets`."""
    annotation: Mapping[str, str] = field(default_factory=dict)
    """Version and index hash of the annotations that the run began with; empty when the data set has none."""
    weights: Mapping[str, Provenance] = field(default_factory=dict)
    """Weights that the run began with (`Task.check`): setting that says where they lie → provenance of what lay
    there."""
    libraries: Mapping[str, str] = field(default_factory=lambda: library_versions(*LIBRARIES))
    """Versions of the libraries that results depend on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", full_name(self.task))  # the class is frozen
        self.data_sets  # noqa: B018  raises where they make no sense

    @property
    def data_sets(self) -> DataSets:
        """All data sets, without credentials."""
        return DataSets(locations=(self.data, *self.more_data), weights=self.data_weights)

    def to_json(self) -> dict[str, Any]:
        """Content of config.json."""
        return {
            "format": _FORMAT,
            "task": self.task,
            "recipe_name": self.recipe_name,
            "recipe": recipe_to_json(self.recipe),
            "data": self.data,
            "more_data": list(self.more_data),
            "data_weights": list(self.data_weights),
            "annotation": dict(self.annotation),
            "weights": {name: dict(found) for name, found in self.weights.items()},
            "libraries": dict(self.libraries),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        if value["format"] != _FORMAT:
            raise ValueError(f"it has format {shown(value['format'])}, this code reads {_FORMAT}")
        json.dumps(value, allow_nan=False)  # NaN, which Python reads, is refused
        rest = {name: item for name, item in value.items() if name not in ("format", "recipe")}
        # Older runs have a single data set.
        lists = [rest.pop(name, []) for name in ("more_data", "data_weights")]
        if not all(isinstance(one, list) for one in lists):
            raise TypeError("something else stands where a list of data sets or weights belongs")
        more, weights = map(tuple, lists)
        texts = [*(rest.get(name, "") for name in ("task", "recipe_name", "data")), *more]
        tables = [rest.get(name, {}) for name in ("annotation", "libraries")]
        if not all(isinstance(text, str) for text in texts) or not all(map(_is_table, tables)):
            raise TypeError("something else stands where a text belongs")
        if any(not _is_table(found) or not found.keys() >= _PROVENANCE for found in rest.get("weights", {}).values()):
            raise TypeError("something else stands where texts about weights belong")
        if not all(isinstance(weight, int | float) for weight in weights):
            raise TypeError("something else stands where a weight belongs")
        recipe = recipe_from_json(value["task"], value["recipe"])
        return cls(recipe=recipe, more_data=more, data_weights=weights, **rest)


class RunFolder:
    """Existing RUN. Made by `start` (create or go on) or `open` (only read).

    Attributes:
        path: Absolute path of RUN.
        config: Content of its config.json.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        self.task = config.task
        self.recipe = config.recipe
        self.data = config.data
        self.data_sets = config.data_sets
        self.task_folder = path / "task"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.validation = path / "validation"
        self.export = path / "pretrained_model"
        self.overview = path / "index.html"
        self.logs = path / "logs"
        self.stop_file = path / "logs" / "stop"

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the run at `path`.

        Raises:
            ValueError: There is no run, its config.json is damaged or of another version, or the folder holds what no
                training makes.
        """
        folder = check_place(path)
        file = folder / CONFIG
        try:
            data = read_limited(file, _CONFIG_BYTES, CONFIG)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"there is no run at {folder} (no {CONFIG}, seen from {socket.gethostname()})") from error
        try:
            value = parse_json(data, "it")
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}): bring back a copy of it, or take another RUN") from error
        try:
            run = cls(folder, RunConfig.from_json(value))
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise ValueError(f"{file} is damaged ({reason}): bring back a copy of it, or take another RUN") from error
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error!s:.300}; take another RUN") from error
        refuse_strange(folder)
        return run

    @classmethod
    def start(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """Create a run, or go on with the one at `path` if it was started with the same settings.

        Settings that only decide how fast or how often may have changed; the new ones hold from now on. A run without a
        checkpoint has nothing to lose: with other settings it is started anew.

        Raises:
            ValueError: The folder holds another run or other files, or a training runs in it.
        """
        # Before anything is written: it must be a run, or hold nothing. Then it must exist before it can be locked.
        folder = check_place(path)
        cls._there(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"RUN {folder} is no folder") from error
        with locked(folder, patience_s=0.0):
            # If there is a run: go on with it, refuse, or start anew where nothing is lost.
            if (there := cls._there(folder)) is not None:
                warn_of_owner(folder)
                if has_trained(folder):
                    cls._check_alike(there, config, folder)
                    # What the task derived belongs to the annotations that the run began with, not to the newest ones.
                    config = dataclasses.replace(config, annotation=there.annotation)
                elif there.annotation != config.annotation or differences(there, config):
                    log.warning("RUN %s has no checkpoint and is started anew: something else is asked for", folder)
                    _clear(folder)
            # Drop what a killed start left, and make the folders of the ranks. config.json comes last: only with it the
            # folder is a run.
            sweep(folder)
            run = cls(folder, config)
            for made in (run.checkpoints, run.logs):
                made.mkdir(exist_ok=True)
            write_whole(folder / CONFIG, pretty_json(config.to_json()))
        return run

    @classmethod
    def _there(cls, folder: Path) -> RunConfig | None:
        """Content of config.json; None where there is none, nor any other file.

        Raises:
            ValueError: Nobody else's files may be mixed with those of a run.
        """
        if os.path.lexists(folder / CONFIG):
            return cls.open(folder).config
        others = sorted(entry.name for entry in folder.iterdir() if entry.name not in _OURS) if folder.is_dir() else []
        if others:
            raise ValueError(f"RUN {folder} holds {others[0]!r} but no {CONFIG}: take an empty or a new folder")
        refuse_strange(folder)
        return None

    @staticmethod
    def _check_alike(there: RunConfig, asked: RunConfig, folder: Path) -> None:
        # Other settings would make another training: refused. Other library versions may: a warning.
        if there.task != asked.task:
            raise ValueError(f"RUN {folder} is a training of {there.task}, not of {asked.task}: take another RUN")
        if found := differences(there, asked):
            raise ValueError(
                f"RUN {folder} was started otherwise (there -> asked): {'; '.join(found)}. Ask for the same, or take"
                " another RUN"
            )
        for name, version in asked.libraries.items():
            if (before := there.libraries.get(name)) != version:
                log.warning(
                    "%s is %s now, was %s: the run may come out otherwise in the last bits", name, version, before
                )

    @contextlib.contextmanager
    def locked(self, patience_s: float = 0.0) -> Iterator[None]:
        """Context in which this process is the only training in this RUN.

        Args:
            patience_s: Seconds to wait for another training that is just ending.

        Raises:
            ValueError: Another training runs in it.
        """
        with locked(self.path, patience_s):
            yield


def begin(path: str | Path, config: RunConfig, data: DataSets | None = None) -> RunFolder:
    """Check what was asked for, then create a run, or go on with the one at `path`; see `RunFolder.start`.

    Whatever can be wrong with settings, data and weights is found while RUN is still as it was.

    Args:
        path: RUN.
        config: Task, recipe and data; the provenance of first weights is filled in here.
        data: The data sets, where config.json must not name them in full.

    Raises:
        ValueError: Data or weights are missing or unsuitable, settings make no model, or RUN holds something else.
    """
    folder = check_place(path) / "task"
    # `check` writes nothing, so the folder need not exist yet.
    weights = make_task(config.task, config.recipe.config, data or config.data_sets, folder).check()
    recipe = dataclasses.replace(config.recipe, config=with_places(config.recipe.config, weights))
    return RunFolder.start(path, dataclasses.replace(config, recipe=recipe, weights=weights))


def with_places(config: Any, weights: Mapping[str, Provenance]) -> Any:
    """Settings with absolute paths of weights: a rank elsewhere has another working folder."""
    places = {name: getattr(config, name) for name, found in weights.items() if found["kind"] in ("folder", "file")}
    return dataclasses.replace(config, **{name: str(Path(place).absolute()) for name, place in places.items()})


def check_place(path: str | Path) -> Path:
    """Absolute path of a RUN; an empty name and object stores are refused with `ValueError`."""
    if not str(path).strip():
        raise ValueError("RUN is empty: name the folder of the run")
    if "://" in str(path):
        raise ValueError(
            f"RUN is {path}: it must be a folder, since checkpoints are renamed when they are whole; take a local or"
            " shared folder and copy pretrained_model/ to the object store afterwards"
        )
    return Path(path).expanduser().absolute()


def folder_name(step: int) -> str:
    """Name of the folder of a step, below `checkpoints/` and `validation/`."""
    return f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Steps that have a folder below a folder, ascending; nothing else that lies there counts."""
    names = (_STEP_FOLDER.fullmatch(entry.name) for entry in folder.glob("step-*") if entry.is_dir())
    return sorted(int(name[1]) for name in names if name)


def differences(there: RunConfig, asked: RunConfig) -> list[str]:
    """Differences between two runs that decide how they come out, as `name: there -> asked`."""
    before, after = _deciding(there), _deciding(asked)
    missing = object()
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, missing), after.get(name, missing)
        if old != new:
            texts = ("none" if value is missing else json.dumps(value, ensure_ascii=False) for value in (old, new))
            found.append(f"{name}: {' -> '.join(texts)}")
    return found


def _deciding(config: RunConfig) -> dict[str, Any]:
    # Through JSON, so that tuples and what was read from a file compare equal.
    value = json.loads(pretty_json(config.to_json()))
    settings, train = value["recipe"]["config"], value["recipe"]["train"]
    # Keep the exceptions, then drop all settings that may change.
    deciding = {"parallel": {"precision": train["parallel"]["precision"]}}
    by_length = train["microbatch_seconds"] is not None  # then it says how many microbatches a step has
    if settings.get("dropout") or by_length or not getattr(config.recipe.config, "independent", True):
        deciding["microbatch"] = train["microbatch"]
    for name in _FREE:
        del train[name]
    for name in getattr(config.recipe.config, "free_settings", ()):
        del settings[name]
    # Only a rate that falls depends on the number of steps: with a constant one a run may be made longer.
    if train["schedule"]["name"] == "constant":
        del train["steps"]
    for name, found in value["weights"].items():  # their content counts, not their place
        settings[name] = f"sha256 {found['sha256'][:16]}"
    parts = {"config": settings, "train": train | deciding, "lora": value["recipe"]["lora"]}
    names = ("task", "data", "more_data", "data_weights")
    return dict(_leaves({name: value[name] for name in names} | parts))


def _is_table(value: Any) -> bool:
    """Whether a value is an object of texts."""
    return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())


def has_trained(folder: Path) -> bool:
    """Whether a run has a checkpoint or weights, which would be lost if it started anew."""
    return any((folder / "checkpoints").glob("step-*")) or (folder / "pretrained_model").exists()


def _clear(folder: Path) -> None:
    """Remove what a run without a checkpoint has left, except its logs."""
    for name in ("task", "checkpoints", "tensorboard", "validation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "index.html"):
        (folder / name).unlink(missing_ok=True)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
