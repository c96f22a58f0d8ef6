"""State of a data set, from which its report is made: every input, and its outcome in each job's current plan."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from annotate.filters import FilterSettings
from ingest.catalog import Catalog, read_catalog
from orchestration import plans
from orchestration.plans import PACK_MEDIA_JOB, UnitState, pack_annotation_job
from orchestration.units.records import RECORD_BYTES, PassRecord, QuarantineRecord, UnitRecord
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
    """Sample key → outcome of its unit."""
    pack: list[UnitRecord] = field(default_factory=list)
    """Commit records of the version's shards."""

    @property
    def units(self) -> list[UnitRecord]:
        """Commit records of all units: samples, then shards."""
        return [*(record for record in self.encode.values() if isinstance(record, UnitRecord)), *self.pack]

    @property
    def quarantined(self) -> list[QuarantineRecord]:
        """Quarantine records of the samples that could not be encoded."""
        return [record for record in self.encode.values() if isinstance(record, QuarantineRecord)]


@dataclass(frozen=True, kw_only=True)
class MetadataNotes:
    """Metadata and files of a data set that gave no input."""

    problems: list[str]
    """Parts of the metadata, or of SOURCE, that could not be read."""
    unused: list[str]
    """Videos in SOURCE that belong to no clip of the metadata."""
    left_out: int
    """Number of clips that LIMIT cut off."""


@dataclass(frozen=True, kw_only=True)
class DataState:
    """All inputs of one DATA folder, and the outcome of their units under the parameters of the current plan.

    A unit that was done under other parameters is not done: its state here is None. So the plan decides which of
    several records of one key counts, and the report only adds up.
    """

    version: str
    """Annotation version that the report is about."""
    catalog: list[CatalogRow]
    """Catalog rows of all data sets in DATA: the inputs."""
    ingest: Mapping[str, UnitState]
    """Clip key → outcome. A row without a source file has no unit and need not be listed."""
    annotate: Mapping[str, UnitState]
    """Sample key → outcome of its annotation in `version`."""
    pack: list[UnitRecord]
    """Commit records of `pack-media` and `pack-<version>`."""
    index: list[SampleIndex]
    """Rows of `version`'s index; empty before packing."""
    previous_version: str | None = None
    """Annotation version to compare with; None when this is the first."""
    filters: FilterSettings | None = None
    """Thresholds that the index was filtered with. They are drawn into the histograms, and the index is checked."""
    latents: list[LatentsState] = field(default_factory=list)
    """Versions of latents next to the annotation."""
    metadata: Mapping[str, MetadataNotes] = field(default_factory=dict)
    """Data set → metadata and files that gave no input."""
    wall_frames: Mapping[str, int] = field(default_factory=dict)
    """Job → frames that the passes in `wall_seconds` put out."""
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    """Job → wall time in seconds of the passes that came to their end; without it speeds are per worker-second."""

    def __post_init__(self) -> None:
        check_version(self.version)
        if self.previous_version == self.version:
            raise ValueError(f"annotation version {self.version} cannot be compared with itself")


def data_state(storage: Storage, version: str | None) -> DataState:
    """Collect the state of a data set for one annotation version.

    Args:
        storage: DATA, the data set's folder or bucket.
        version: Name of the version; None: the newest.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: There is no such version, or it is no face annotation.
    """
    # Only a finished data set can be reported on, by a face annotation.
    manifest = read_manifest(storage)
    entry = manifest.annotation(version)
    if entry.kind != "annotation":
        faces = ", ".join(other.version for other in manifest.of_kind("annotation"))
        raise ValueError(f"{version} holds {entry.kind}; a report is about a face annotation: {faces}")
    # Everything from tables and records: no media are opened here.
    names = [name for name in DATASETS if storage.exists(dataroot.catalog(name))]
    catalogs = {name: read_catalog(storage, name) for name in names}
    media = plans.pack_records(storage, PACK_MEDIA_JOB)
    annotation = plans.pack_records(storage, pack_annotation_job(entry.version))
    frames, seconds = _wall_times(storage)
    return DataState(
        version=entry.version,
        catalog=[row for catalog in catalogs.values() for row in catalog.rows],
        metadata={name: _notes(catalog) for name, catalog in catalogs.items()},
        ingest=plans.ingest_results(storage),
        annotate=plans.annotate_results(storage, entry.version),
        pack=[*media.values(), *annotation.values()],
        index=list(read_index(storage, entry).rows()),
        previous_version=_previous(manifest.of_kind("annotation"), entry),
        filters=from_json(FilterSettings, entry.details.get("filters", {})),
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
    """Name of the version before, without those that kept no sample: they have nothing to compare with."""
    earlier = [other.version for other in entries[: entries.index(entry)] if other.kept]
    return earlier[-1] if earlier else None


def _wall_times(storage: Storage) -> tuple[Mapping[str, int], Mapping[str, float]]:
    """Job → frames, and job → wall time in seconds, over all passes that came to their end."""
    frames: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    # One small file per pass, written at its end.
    for file in storage.list(dataroot.RUNS_FOLDER, ".json"):
        done = PassRecord.from_json(storage.read(file.path, RECORD_BYTES, "record"), storage.describe(file.path))
        frames[done.job] += done.frames
        seconds[done.job] += done.wall_seconds
    return frames, seconds
