"""What else of removed samples lies in DATA, next to their own plans and records, and goes with them.

Outputs and records of their units, under whatever settings they were made and whether a plan still knows the job; what
failed and names them; records of commands that name them; sums of global fits, of which nobody can tell whose they are;
damaged files that were set aside; and what the catalogs say of them as copies of others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ingest.catalog import Catalog, read_catalog, write_catalog
from orchestration.jobs.matched import catalogs_of
from orchestration.jobs.removed import nameless
from orchestration.plans import FIT_PREFIX, INGEST_JOB, PACK_PREFIX
from orchestration.units.damage import set_aside
from orchestration.units.records import RECORD_BYTES
from talkinghead import dataroot
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage

log = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_RELEASED = re.compile(r"released/[^/]+/[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.\d+\.json")
_COMMAND = re.compile(rf"{dataroot.COMMANDS_FOLDER}/\d+-[0-9a-f]+\.json")
_FAILED = (dataroot.QUARANTINE_FOLDER, "released")


class Names:
    """What tells of removed samples in a text: their keys, and other names.

    Args:
        keys: Keys of samples and clips.
        others: Names of persons and files.
    """

    def __init__(self, keys: Iterable[str], others: Iterable[str]) -> None:
        self._keys = frozenset(keys)
        self._others = sorted(set(others) - {""})

    def are_in(self, text: str) -> bool:
        """Whether a text has one of the names, not as a part of a longer one."""
        return not self._keys.isdisjoint(_KEY.findall(text)) or any(
            name in text and re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", text) for name in self._others
        )


def delete_of_units(storage: Storage, samples: Collection[str], clips: Collection[str], but: Collection[str]) -> None:
    """Delete what jobs have written of samples and of whole clips, planned or not; and all of global fits' parts.

    Args:
        storage: DATA.
        samples: Keys of samples.
        clips: Keys of the clips that go as a whole.
        but: Paths of the records that account for these clips.
    """
    for folder in ("records", "units", *_FAILED):
        for file in storage.list(folder):
            parts = file.path.split("/")
            job, key = parts[1], parts[-1].partition(".")[0]
            if not _is_ours(file.path, job):
                continue
            keys = clips if job == INGEST_JOB else samples
            if job.startswith(FIT_PREFIX) or (key in keys and not job.startswith(PACK_PREFIX) and file.path not in but):
                storage.delete(file.path)
    for file in storage.list("plans"):
        if file.path.startswith(f"plans/{FIT_PREFIX}"):
            storage.delete(file.path)


def delete_naming(storage: Storage, names: Names) -> None:
    """Delete what is written of failures whose messages name something: the units are tried again. And the records of
    commands whose arguments or errors do."""
    for folder in (*_FAILED, dataroot.COMMANDS_FOLDER):
        for file in storage.list(folder, ".json"):
            if not _is_ours(file.path, file.path.split("/")[1]):
                continue
            try:
                told = names.are_in("\n".join(_texts(parse_json(storage.read(file.path, RECORD_BYTES), "it"))))
            except ValueError:  # it cannot be read, and nobody needs it
                told = True
            if told:
                storage.delete(file.path)


def _is_ours(path: str, job: str) -> bool:
    """Whether a path has the form of a record's or an output's."""
    of_unit = dataroot.keys_of_record(path) or dataroot.is_unit(path, job)
    return bool(of_unit or _RELEASED.fullmatch(path) or _COMMAND.fullmatch(path))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def delete_set_aside(storage: Storage, keys: Collection[str]) -> None:
    """Delete what was set aside, damaged: of units with certain keys; and plans, catalogs, and records of shards,
    segments and fits, which name everybody."""
    every = tuple(f"{dataroot.DAMAGED_FOLDER}/{folder}/" for folder in ("catalog", "plans"))
    for file in storage.list(dataroot.DAMAGED_FOLDER):
        parts = file.path.split("/")
        job = parts[2] if len(parts) > 3 else ""
        of_segment = dataroot.segment_of_record(dataroot.undamaged(file.path)) is not None
        of_all = file.path.startswith(every) or job.startswith((PACK_PREFIX, FIT_PREFIX)) or of_segment
        if of_all or parts[-1].partition(".")[0] in keys:
            storage.delete(file.path)


def strip_catalogs(storage: Storage, clips: Collection[str], names: Names, sources: Collection[str]) -> None:
    """Take names and attributes of whole clips out of every catalog, and what it says of them elsewhere.

    Args:
        storage: DATA.
        clips: Keys of the clips.
        names: What tells of them.
        sources: Names of their files, as the list of unused ones writes them.
    """
    for dataset in catalogs_of(storage):
        try:
            catalog = read_catalog(storage, dataset)
        except ValueError as error:  # damaged since the removal began
            set_aside(storage, dataroot.catalog(dataset), str(error).partition(": make ")[0], "make ingest makes it")
            continue
        stripped = _stripped(catalog, clips, names, sources)
        if stripped != catalog:
            write_catalog(storage, stripped)


def _stripped(catalog: Catalog, clips: Collection[str], names: Names, sources: Collection[str]) -> Catalog:
    return replace(
        catalog,
        rows=[nameless(row) if row.key in clips else row for row in catalog.rows],
        problems=[
            problem
            for problem in catalog.problems
            if not names.are_in(problem.file) and not names.are_in(problem.message)
        ],
        unused=tuple(name for name in catalog.unused if name not in sources),
    )
