"""State of a data set, from which its report is made: every input, and its outcome in each job's current plan."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from annotate.filters import FilterSettings
from ingest.catalog import Catalog, read_catalog
from orchestration import outcomes, plans
from orchestration.jobs.catalogs import cataloged
from orchestration.outcomes import UnitState
from orchestration.plans import PACK_MEDIA_JOB, pack_annotation_job
from orchestration.units.damage import damaged_files
from orchestration.units.ledger import Ledger
from orchestration.units.records import RECORD_BYTES, PassRecord, QuarantineRecord, UnitRecord
from shards.index import Index, read_index
from shards.manifest import AnnotationEntry, DatasetManifest, FitEntry, read_manifest
from talkinghead import dataroot
from talkinghead.config import from_json, shown
from talkinghead.derived import ANNOTATION, ColumnVersion
from talkinghead.files.storage import Storage
from talkinghead.schema import DATASETS, CatalogRow, SampleIndex, check_version


@dataclass(frozen=True, kw_only=True)
class ColumnState:
    """One version of a derived column, finished or not."""

    version: str
    made_of: ColumnVersion
    entry: AnnotationEntry | None = None
    """Its entry in `DATASET.json`; None: it is planned, but not finished, and no reader finds it."""
    index: Index | None = None
    """Scores, labels and places of its samples; None while it is not finished."""
    results: Mapping[str, UnitState] = field(default_factory=dict)
    """Sample key → outcome of its unit; empty where DATA was copied without its plans."""
    pack: list[UnitRecord] = field(default_factory=list)
    """Commit records of the version's shards."""

    @property
    def units(self) -> list[UnitRecord]:
        """Commit records of all units: samples, then shards."""
        return [*(record for record in self.results.values() if isinstance(record, UnitRecord)), *self.pack]

    @property
    def quarantined(self) -> list[QuarantineRecord]:
        """Quarantine records of the samples whose column could not be made."""
        return [record for record in self.results.values() if isinstance(record, QuarantineRecord)]


@dataclass(frozen=True, kw_only=True)
class MetadataNotes:
    """Metadata and files of a data set that gave no input."""

    problems: list[str]
    """Parts of the metadata, or of SOURCE, that could not be read."""
    unused: list[str]
    """Videos in SOURCE that belong to no clip of the metadata."""
    left_out: int
    """Number of clips that LIMIT cut off."""
    there: int
    """Number of listed clips whose video, or released clip, is in SOURCE."""
    released: int
    """Number of those that are released clips, cut out already."""


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
    columns: list[ColumnState] = field(default_factory=list)
    """Versions of derived columns: those of `DATASET.json`, then those that are not finished."""
    fits: list[FitEntry] = field(default_factory=list)
    """Global fits."""
    fit_parts: list[UnitRecord | QuarantineRecord] = field(default_factory=list)
    """Records of the parts of all global fits that were planned."""
    metadata: Mapping[str, MetadataNotes] = field(default_factory=dict)
    """Data set → metadata and files that gave no input."""
    wall_frames: Mapping[str, int] = field(default_factory=dict)
    """Job → frames that the passes in `wall_seconds` put out."""
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    """Job → wall time in seconds of the passes that came to their end; without it speeds are per worker-second."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Path of a record that cannot be read → what is wrong with it. A unit of which it is the record is pending."""
    lost: list[str] = field(default_factory=list)
    """Lines about catalogs and plans that are gone, with the commands that make them again."""
    set_aside: list[str] = field(default_factory=list)
    """Paths that files had which could not be read, or whose output was lost: they were set aside, and their units run
    again."""

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
        ValueError: There is no such version, or it is no face annotation; or a table is damaged, and the message names
            the command that makes it again.
    """
    # Only a finished data set can be reported on, by a face annotation.
    manifest = read_manifest(storage)
    entry = manifest.annotation(version)
    if entry.kind != ANNOTATION:
        faces = ", ".join(other.version for other in manifest.of_kind(ANNOTATION))
        raise ValueError(f"{version} holds {entry.kind}; a report is about a face annotation: {faces}")
    # Everything from tables and records: no media are opened here.
    names = [name for name in DATASETS if storage.exists(dataroot.catalog(name))]
    catalogs = {name: read_catalog(storage, name) for name in names}
    unreadable: outcomes.Unreadable = {}
    media = outcomes.pack_records(storage, PACK_MEDIA_JOB, unreadable)
    annotation = outcomes.pack_records(storage, pack_annotation_job(entry.version), unreadable)
    frames, seconds = _wall_times(storage, unreadable)
    return DataState(
        version=entry.version,
        catalog=[row for catalog in catalogs.values() for row in catalog.rows],
        metadata={name: _notes(catalog) for name, catalog in catalogs.items()},
        ingest=outcomes.ingest_results(storage, unreadable),
        annotate=outcomes.annotate_results(storage, entry.version, unreadable),
        pack=[*media.values(), *annotation.values()],
        index=list(read_index(storage, entry).rows()),
        previous_version=_previous(manifest.of_kind(ANNOTATION), entry),
        filters=from_json(FilterSettings, entry.details.get("filters", {})),
        columns=list(_columns(storage, manifest, unreadable)),
        fits=manifest.fits,
        fit_parts=list(_fit_parts(storage)),
        wall_frames=frames,
        wall_seconds=seconds,
        unreadable=unreadable,
        lost=list(_lost(storage, manifest, entry.version)),
        set_aside=damaged_files(storage),
    )


def _lost(storage: Storage, manifest: DatasetManifest, version: str) -> Iterator[str]:
    """Lines about the catalogs and plans that are gone of what DATA holds."""
    for dataset in cataloged(storage, manifest):
        path = dataroot.catalog(dataset)
        if not storage.exists(path):
            again = plans.again_with(plans.ingest_plan_name(dataset), storage.uri)
            yield f"{path} is gone, without which nobody knows what its inputs were: {again} makes it again"
    jobs = [plans.ingest_plan_name(name) for name in manifest.datasets if name in DATASETS]
    for name in [*jobs, plans.annotate_job(version)]:
        if plans.find_plan(storage, name) is None:
            again = plans.again_with(name, storage.uri)
            yield f"{dataroot.plan(name)} is gone, without which its units count as not done: {again} makes it again"


def _columns(storage: Storage, manifest: DatasetManifest, unreadable: outcomes.Unreadable) -> Iterator[ColumnState]:
    """Versions of derived columns that `DATASET.json` names, then those that are planned and not finished."""
    finished = set()
    for entry in manifest.annotations:
        if entry.kind != ANNOTATION:
            finished.add(plans.column_job(entry.kind, entry.version))
            yield _column(storage, entry.version, entry.made_of, unreadable, entry)
    for name in plans.plan_names(storage, *plans.COLUMN_PREFIXES):
        plan = None if name in finished else plans.find_plan(storage, name)
        if plan is not None:
            assert isinstance(plan, plans.ColumnPlan)
            yield _column(storage, _version(storage, name, plan.made_of.column), plan.made_of, unreadable)


def _column(
    storage: Storage,
    version: str,
    made_of: ColumnVersion,
    unreadable: outcomes.Unreadable,
    entry: AnnotationEntry | None = None,
) -> ColumnState:
    return ColumnState(
        version=version,
        made_of=made_of,
        entry=entry,
        index=read_index(storage, entry) if entry else None,
        results=outcomes.derive_results(storage, made_of.column, version, unreadable),
        pack=list(outcomes.pack_records(storage, pack_annotation_job(version), unreadable).values()),
    )


def _version(storage: Storage, name: str, column: str) -> str:
    """Version that a plan of this name is about; raises `ValueError` where it cannot be one of the column."""
    version = name.removeprefix(plans.stored_names(column).job)
    if plans.column_job(column, version) != name:
        raise ValueError(f"{storage.describe(dataroot.plan(name))} is no plan of ours: it is about {shown(column)}")
    return check_version(version)


def _fit_parts(storage: Storage) -> Iterator[UnitRecord | QuarantineRecord]:
    """Records of the parts of global fits."""
    for name in plans.plan_names(storage, plans.FIT_PREFIX):
        if plan := plans.find_plan(storage, name):
            results = Ledger(storage, name).results(plan.units.items())
            yield from (record for record in results.values() if record is not None)


def _notes(catalog: Catalog) -> MetadataNotes:
    return MetadataNotes(
        problems=[str(problem) for problem in catalog.problems],
        unused=list(catalog.unused),
        left_out=catalog.left_out,
        there=catalog.there,
        released=catalog.released,
    )


def _previous(entries: list[AnnotationEntry], entry: AnnotationEntry) -> str | None:
    """Name of the version before, without those that kept no sample: they have nothing to compare with."""
    earlier = [other.version for other in entries[: entries.index(entry)] if other.kept]
    return earlier[-1] if earlier else None


def _wall_times(storage: Storage, unreadable: outcomes.Unreadable) -> tuple[Mapping[str, int], Mapping[str, float]]:
    """Job → frames, and job → wall time in seconds, over all passes that came to their end."""
    frames: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    # One small file per pass, written at its end.
    for file in storage.list(dataroot.RUNS_FOLDER, ".json"):
        try:
            done = PassRecord.from_json(storage.read(file.path, RECORD_BYTES, "record"), storage.describe(file.path))
        except ValueError as error:
            unreadable[file.path] = str(error)
            continue
        frames[done.job] += done.frames
        seconds[done.job] += done.wall_seconds
    return frames, seconds
