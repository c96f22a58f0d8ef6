"""The report's view of DATA: what every job made of every input."""

from __future__ import annotations

import json
from typing import Any

from annotate.filters import FilterSettings
from ingest.catalog import read_catalog
from orchestration import state
from orchestration.jobs import pack
from orchestration.report.state import RunState
from shards.index import read_index
from shards.manifest import read_manifest
from talkinghead.config import from_json
from talkinghead.schema import DATASETS
from talkinghead.storage import Storage


def run_state(storage: Storage, version: str | None) -> RunState:
    """Collect the state of a version (default: the newest).

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: There is no such version.
    """
    manifest = read_manifest(storage)
    entry = manifest.annotation(version)
    position = manifest.annotations.index(entry)
    catalogs = [name for name in DATASETS if storage.exists(f"catalog/{name}.parquet")]
    media = state.pack_records(storage, pack.MEDIA_JOB)
    annotation = state.pack_records(storage, pack.annotation_job(entry.version))
    return RunState(
        version=entry.version,
        catalog=[row for name in catalogs for row in read_catalog(storage, name).rows],
        ingest=state.ingest_results(storage),
        annotate=state.annotate_results(storage, entry.version),
        pack=[*media.values(), *annotation.values()],
        index=list(read_index(storage, entry.version).rows()),
        previous_version=manifest.annotations[position - 1].version if position else None,
        filters=from_json(FilterSettings, entry.details["filters"]),
        wall_seconds=_wall_seconds(storage),
    )


def _wall_seconds(storage: Storage) -> dict[str, float]:
    """Job → seconds on the clock over all runs that did something."""
    seconds: dict[str, float] = {}
    for file in storage.list("runs", ".json"):
        run: dict[str, Any] = json.loads(storage.read(file.path))
        seconds[run["job"]] = seconds.get(run["job"], 0.0) + run["wall_seconds"]
    return seconds
