"""Collects what the report is made from: what every job made of every input."""

from __future__ import annotations

import json
from collections import Counter

from annotate.filters import FilterSettings
from ingest.catalog import Catalog, read_catalog
from orchestration import results
from orchestration.job_names import PACK_MEDIA_JOB, pack_annotation_job
from orchestration.report.latents import latents_states
from orchestration.report.state import MetadataNotes, RunState
from shards.index import read_index
from shards.manifest import AnnotationEntry, read_manifest
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.files.storage import Storage
from talkinghead.schema import DATASETS


def run_state(storage: Storage, version: str | None) -> RunState:
    """Collect the state of a version (default: the newest).

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: There is no such version, or it is no face annotation.
    """
    manifest = read_manifest(storage)
    entry = manifest.annotation(version)
    if entry.kind != "annotation":
        faces = ", ".join(other.version for other in manifest.of_kind("annotation"))
        raise ValueError(f"{version} holds {entry.kind}; a report is about a face annotation: {faces}")
    names = [name for name in DATASETS if storage.exists(dataroot.catalog(name))]
    catalogs = {name: read_catalog(storage, name) for name in names}
    media = results.pack_records(storage, PACK_MEDIA_JOB)
    annotation = results.pack_records(storage, pack_annotation_job(entry.version))
    frames, seconds = _runs(storage)
    return RunState(
        version=entry.version,
        catalog=[row for catalog in catalogs.values() for row in catalog.rows],
        metadata={name: _notes(catalog) for name, catalog in catalogs.items()},
        ingest=results.ingest_results(storage),
        annotate=results.annotate_results(storage, entry.version),
        pack=[*media.values(), *annotation.values()],
        index=list(read_index(storage, entry).rows()),
        previous_version=_previous(manifest.of_kind("annotation"), entry),
        filters=from_json(FilterSettings, entry.details["filters"]),
        latents=latents_states(storage, manifest),
        wall_frames=frames,
        wall_seconds=seconds,
    )


def _notes(catalog: Catalog) -> MetadataNotes:
    return MetadataNotes(
        problems=[str(problem) for problem in catalog.problems],
        unused=list(catalog.unused),
        left_out=catalog.left_out,
    )


def _previous(entries: list[AnnotationEntry], entry: AnnotationEntry) -> str | None:
    """The version before, passing over those that kept nothing: they have nothing to compare with."""
    earlier = [other.version for other in entries[: entries.index(entry)] if other.kept]
    return earlier[-1] if earlier else None


def _runs(storage: Storage) -> tuple[Counter[str], Counter[str]]:
    """Job → frames and seconds on the clock, over all runs that came to their end."""
    frames: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for file in storage.list(dataroot.RUNS_FOLDER, ".json"):
        run = json.loads(storage.read(file.path))
        frames[run["job"]] += run["frames"]
        seconds[run["job"]] += run["wall_seconds"]
    return frames, seconds
