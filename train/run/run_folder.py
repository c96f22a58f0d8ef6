"""RUN, the folder of one training: everything that it leaves, and what it needs to go on.

config.json                 task, recipe, data, versions: everything that decides how the run comes out
task/                       what the task derived from the data
checkpoints/step-00001000/  state to resume from; checkpoints/last names the newest, damaged-step-… were set aside
metrics.jsonl               figures, a line for every few steps; also in tensorboard/
validation/step-00001000/   figures, plots and videos of held-out clips
weights/step-00001000/      averaged weights of validated steps, ready to use; weights/best names the best
pretrained_model/           averaged weights, ready to use
index.html                  overview
logs/                       log of each rank, with the traceback of the error that ended it
.lock                       held by rank 0 while a training runs

RUN may be on an object store: then it is such a folder of this machine, and the store has what counts
(`train.run.run_store`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from talkinghead.files.atomic import sweep, write_whole
from talkinghead.files.foreign import parse_json, read_limited, warn_of_owner
from talkinghead.files.lock import LockedError, folder_lock
from talkinghead.provenance import pretty_json
from train.data_sets import DataSets
from train.microbatch import keeps_microbatch, settled
from train.recipe import make_task
from train.run.run_config import RunConfig, differences
from train.run.run_lock import LOCK, locked, refuse_strange
from train.run.run_store import CONFIG, RunStore, is_store
from train.run.store_listing import LISTING
from train.task import Provenance

log = logging.getLogger(__name__)

_CONFIG_BYTES = 1 << 20
_OURS = {"logs", LOCK}
_STEP_FOLDER = re.compile(r"step-(\d{8}|[1-9]\d{8,17})", re.ASCII)


class RunFolder:
    """Existing RUN. Made by `start` (create or go on) or `open` (only read).

    Attributes:
        path: Absolute path of RUN; of one on an object store, of its working folder on this machine.
        config: Content of its config.json.
        store: The run on the object store; None: it is on none.
    """

    def __init__(self, path: Path, config: RunConfig, store: RunStore | None = None) -> None:
        self.path = path
        self.config = config
        self.store = store
        self.task = config.task
        self.recipe = config.recipe
        self.data = config.data
        self.data_sets = config.data_sets
        self.run_id = config.run_id
        self.task_folder = path / "task"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.validation = path / "validation"
        self.kept_weights = path / "weights"
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
        folder, store = place_of(path)
        config = _config_of(folder, store)
        if config is None:
            where = folder if store is None else store
            raise ValueError(f"there is no run at {where} (no {CONFIG}, seen from {socket.gethostname()})")
        run = cls(folder, config, store)
        if store is not None:  # another machine than the one that has started the run has no folder yet
            for made in (run.checkpoints, run.logs):
                made.mkdir(parents=True, exist_ok=True)
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
        folder, store = place_of(path)
        cls._there(folder, store)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"RUN {folder} is no folder") from error
        with locked(folder, patience_s=0.0), contextlib.nullcontext() if store is None else store.held():
            if store is not None:
                store.pull()
            # If there is a run: go on with it, refuse, or start anew where nothing is lost.
            identity: str | None = None
            if (there := cls._there(folder, store)) is not None:
                warn_of_owner(folder)
                identity = there.run_id
                if has_trained(folder, store):
                    cls._check_alike(there, config, folder)
                    # What the task derived belongs to the annotations that the run began with, not to the newest ones.
                    config = dataclasses.replace(config, annotation=there.annotation)
                elif there.annotation != config.annotation or differences(there, config):
                    log.warning("RUN %s has no checkpoint and is started anew: something else is asked for", folder)
                    _clear(folder)
                    identity = None
            config = dataclasses.replace(config, run_id=identity or uuid.uuid4().hex)
            # Drop what a killed start left, and make the folders of the ranks. config.json comes last: only with it the
            # folder is a run.
            sweep(folder)
            run = cls(folder, config, store)
            for made in (run.checkpoints, run.logs):
                made.mkdir(exist_ok=True)
            write_whole(folder / CONFIG, pretty_json(config.to_json()))
            run.push()
        return run

    @classmethod
    def _there(cls, folder: Path, store: RunStore | None = None) -> RunConfig | None:
        """Content of config.json; None where there is none, nor any other file.

        Raises:
            ValueError: Nobody else's files may be mixed with those of a run.
        """
        if store is not None:
            return cls._there_in(store)
        if os.path.lexists(folder / CONFIG):
            return cls.open(folder).config
        others = sorted(entry.name for entry in folder.iterdir() if entry.name not in _OURS) if folder.is_dir() else []
        if others:
            raise ValueError(f"RUN {folder} holds {others[0]!r} but no {CONFIG}: take an empty or a new folder")
        refuse_strange(folder)
        return None

    @staticmethod
    def _there_in(store: RunStore) -> RunConfig | None:
        """As `_there`, of a RUN on an object store."""
        if (config := _config_of(store.folder, store)) is not None:
            return config
        if others := [name for name in store.storage.names() if name not in {*_OURS, LISTING}]:
            raise ValueError(f"RUN {store} holds {others[0]!r} but no {CONFIG}: take an empty or a new folder")
        if has_trained(store.folder):
            raise ValueError(
                f"RUN {store} is empty, but {store.folder} has what a training left that ran here: copy it to the"
                " store, or remove that folder to begin anew"
            )
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
            if self.store is None:
                yield
                return
            with self.store.held(patience_s):
                self.store.pull()
                with self.store.pushed():
                    yield

    def push(self) -> None:
        """Bring what has changed to the object store, if RUN is on one; who calls it holds the lock.

        Raises:
            LeaseLost: Another training has taken RUN over.
            UnreachableError: The store does not answer.
        """
        if self.store is not None:
            self.store.push()

    def fetch_task(self) -> None:
        """Bring what the task derived to this machine, if RUN is on an object store."""
        if self.store is not None:
            self.store.fetch(self.task_folder.name, self.task_folder)

    def refresh(self) -> None:
        """Bring figures to this machine, if RUN is on an object store and no training of this machine makes them."""
        if self.store is not None:
            with contextlib.suppress(LockedError), folder_lock(self.path / LOCK):
                self.store.pull(folders=False)

    @property
    def location(self) -> str:
        """RUN by a name that other processes and machines know it by."""
        return str(self.path) if self.store is None else self.store.location

    def describe(self, place: Path) -> str:
        """Name of a file or folder of RUN, for people."""
        return str(place) if self.store is None else self.store.describe(place)


def begin(path: str | Path, config: RunConfig, data: DataSets | None = None, *, ranks: int = 1) -> RunFolder:
    """Check what was asked for, then create a run, or go on with the one at `path`; see `RunFolder.start`.

    Whatever can be wrong with settings, data and weights is found while RUN is still as it was.

    Args:
        path: RUN.
        config: Task, recipe and data; the provenance of first weights is filled in here.
        data: The data sets, where config.json must not name them in full.
        ranks: Number of ranks, by which the microbatch is settled.

    Raises:
        ValueError: Data or weights are missing or unsuitable, settings make no model, the ranks cannot share a batch,
            or RUN holds something else.
    """
    config = with_microbatch(path, config, ranks)
    folder = check_place(path) / "task"
    # `check` writes nothing, so the folder need not exist yet.
    weights = make_task(config.task, config.recipe.config, data or config.data_sets, folder).check()
    recipe = dataclasses.replace(config.recipe, config=with_places(config.recipe.config, weights))
    return RunFolder.start(path, dataclasses.replace(config, recipe=recipe, weights=weights))


def with_microbatch(path: str | Path, config: RunConfig, ranks: int) -> RunConfig:
    """Run with the number of samples that each of so many ranks takes at once; see `train.microbatch`.

    Raises:
        ValueError: So many ranks cannot share a batch, or RUN holds something else.
    """
    (folder, store), kept = place_of(path), None
    if config.recipe.train.microbatch is None and keeps_microbatch(config.recipe):
        there = RunFolder._there(folder, store)
        if there is not None and has_trained(folder, store):
            kept = there.recipe.train.microbatch
    train = settled(config.recipe.train, ranks, kept)
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, train=train))


def with_places(config: Any, weights: Mapping[str, Provenance]) -> Any:
    """Settings with absolute paths of weights: a rank elsewhere has another working folder."""
    places = {name: getattr(config, name) for name, found in weights.items() if found["kind"] in ("folder", "file")}
    return dataclasses.replace(config, **{name: str(Path(place).absolute()) for name, place in places.items()})


def check_place(path: str | Path) -> Path:
    """Absolute path of a RUN; of one on an object store, of its working folder on this machine. See `place_of`."""
    return place_of(path)[0]


def place_of(path: str | Path) -> tuple[Path, RunStore | None]:
    """Absolute path of a RUN; of one on an object store, of its working folder on this machine, and the store.

    Raises:
        ValueError: The name is empty, or names a place that can hold no run.
    """
    if not str(path).strip():
        raise ValueError("RUN is empty: name the folder of the run")
    if is_store(path):
        store = RunStore(str(path))
        return store.folder, store
    return Path(path).expanduser().absolute(), None


def _config_of(folder: Path, store: RunStore | None) -> RunConfig | None:
    """Content of config.json; None where there is none.

    Raises:
        ValueError: It is damaged or of another version.
    """
    file = folder / CONFIG if store is None else f"{store}/{CONFIG}"
    try:
        local = store is None
        data = read_limited(folder / CONFIG, _CONFIG_BYTES, CONFIG) if local else store.read(CONFIG, _CONFIG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        data = None
    if data is None:
        return None
    try:
        value = parse_json(data, "it")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): bring back a copy of it, or take another RUN") from error
    try:
        return RunConfig.from_json(value)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{file} is damaged ({reason}): bring back a copy of it, or take another RUN") from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error!s:.300}; take another RUN") from error


def folder_name(step: int) -> str:
    """Name of the folder of a step, below `checkpoints/`, `validation/` and `weights/`."""
    return f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Steps that have a folder below a folder, ascending; nothing else that lies there counts."""
    names = (_STEP_FOLDER.fullmatch(entry.name) for entry in folder.glob("step-*") if entry.is_dir())
    return sorted(int(name[1]) for name in names if name)


def has_trained(folder: Path, store: RunStore | None = None) -> bool:
    """Whether a run has a checkpoint, be it a damaged one, or weights, which would be lost if it started anew."""
    steps = ("checkpoints/step-*", "checkpoints/damaged-*", "weights/step-*")
    here = any(any(folder.glob(names)) for names in steps) or (folder / "pretrained_model").exists()
    return here or (store is not None and store.has_trained())


def _clear(folder: Path) -> None:
    """Remove what a run without a checkpoint has left, except its logs."""
    for name in ("task", "checkpoints", "tensorboard", "validation", "weights"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "index.html"):
        (folder / name).unlink(missing_ok=True)
