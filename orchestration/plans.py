"""Plan files: which units belong to a job now, so that later jobs need nothing but DATA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json


def write_plan(
    storage: Storage, name: str, units: Sequence[Unit], extra: Mapping[str, str] | None = None, **about: Any
) -> None:
    """Record the units of a job; an equal plan is left alone.

    Args:
        storage: DATA.
        name: Name of the plan.
        units: What belongs to it.
        extra: Key → provenance key of units that belong to it too, though they cannot be run any more.
        about: Settings and whatever else made the plan.
    """
    value = {"units": {unit.key: unit.pkey for unit in units} | dict(extra or {}), **about}
    write_json(storage, dataroot.plan(name), value)


def write_json(storage: Storage, path: str, value: Any) -> None:
    """Replace a JSON file unless it already says the same."""
    data = pretty_json(value)
    if not storage.exists(path) or storage.read(path) != data:
        storage.write(path, data)


def read_plan(storage: Storage, name: str) -> dict[str, Any]:
    """The plan's content. Raises `FileNotFoundError`."""
    return json.loads(storage.read(dataroot.plan(name)))


def plan_names(storage: Storage, prefix: str) -> list[str]:
    """Names of the plans that start with `prefix`, sorted."""
    names = [file.path.removeprefix("plans/").removesuffix(".json") for file in storage.list("plans", ".json")]
    return [name for name in names if name.startswith(prefix)]
