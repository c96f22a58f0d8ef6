"""What the report is made from: every input of DATA, and what the jobs made of it by their current plans."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from annotate.filters import FilterSettings
from ingest.catalog import Catalog, read_catalog
from orchestration import plans
from orchestration.plans import PACK_MEDIA_JOB, UnitState, pack_annotation_job
from orchestration.units.records import QuarantineRecord, UnitRecord
from shards.index import read_index
from shards.manifest import AnnotationEntry, DatasetManifest, read_manifest
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.files.storage import Storage
from talkinghead.schema import DATASETS, CatalogRow, SampleIndex, check_version


@dataclass(frozen=True, kw_only=True)
class LatentsState:
    """One version of latents."""

    entry: AnnotationEntry
    encode: Mapping[str, UnitState] = field(default_factory=dict)
    """Sample key → what became of its unit."""
    pack: list[UnitRecord] = field(default_factory=list)
    """Commit records of its shards."""

    @property
    def units(self) -> list[UnitRecord]:
        """Every committed unit."""
        return [*(record for record in self.encode.values() if isinstance(record, UnitRecord)), *self.pack]

    @property
    def quarantined(self) -> list[QuarantineRecord]:
        """Samples that could not be encoded."""
        return [record for record in self.encode.values() if isinstance(record, QuarantineRecord)]


@dataclass(frozen=True, kw_only=True)
class MetadataNotes:
    """What of a data set gave no input."""

    problems: list[str]
    """Parts of the metadata, or of SOURCE, that could not be read."""
    unused: list[str]
    """Videos in SOURCE that belong to no clip of the metadata."""
    left_out: int
    """Clips that LIMIT cut off."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All inputs of one DATA folder and what became of their units under the parameters of the current plan.

    A unit that was done under other parameters is not done: its state here is None. So the plan decides which of
    several records of one key counts, and the report only adds up.
    """

    version: str
    """The annotation version reported on."""
    catalog: list[CatalogRow]
    """The rows of all data sets in DATA: the inputs."""
    ingest: Mapping[str, UnitState]
    """Clip key → state. A row without a source file has no unit and need not be listed."""
    annotate: Mapping[str, UnitState]
    """Sample key → state of its annotation of `version`."""
    pack: list[UnitRecord]
    """Commit records of `pack-media` and `pack-<version>`."""
    index: list[SampleIndex]
    """Rows of `version`'s index; empty before packing."""
    previous_version: str | None = None
    """The annotation version to compare with; None when this is the first."""
    filters: FilterSettings | None = None
    """Thresholds the index was filtered with; drawn into the histograms, and the index is checked against them."""
    latents: list[LatentsState] = field(default_factory=list)
    """Versions of latents next to it."""
    metadata: Mapping[str, MetadataNotes] = field(default_factory=dict)
    """Data set → what gave no input."""
    wall_frames: Mapping[str, int] = field(default_factory=dict)
    """Job → frames that the runs in `wall_seconds` put out."""
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    """Job → seconds on the clock of the runs that came to their end; without it speeds are per worker-second."""

    def __post_init__(self) -> None:
        check_version(self.version)
        if self.previous_version == self.version:
            raise ValueError(f"annotation version {self.version} cannot be compared with itself")


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
    media = plans.pack_records(storage, PACK_MEDIA_JOB)
    annotation = plans.pack_records(storage, pack_annotation_job(entry.version))
    frames, seconds = _runs(storage)
    return RunState(
        version=entry.version,
        catalog=[row for catalog in catalogs.values() for row in catalog.rows],
        metadata={name: _notes(catalog) for name, catalog in catalogs.items()},
        ingest=plans.ingest_results(storage),
        annotate=plans.annotate_results(storage, entry.version),
        pack=[*media.values(), *annotation.values()],
        index=list(read_index(storage, entry).rows()),
        previous_version=_previous(manifest.of_kind("annotation"), entry),
        filters=from_json(FilterSettings, entry.details["filters"]),
        latents=_latents(storage, manifest),
        wall_frames=frames,
        wall_seconds=seconds,
    )


def _latents(storage: Storage, manifest: DatasetManifest) -> list[LatentsState]:
    """The versions of latents that `DATASET.json` names."""
    return [
        LatentsState(
            entry=entry,
            encode=plans.encode_results(storage, entry.version),
            pack=list(plans.pack_records(storage, pack_annotation_job(entry.version)).values()),
        )
        for entry in manifest.of_kind("latents")
    ]


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
