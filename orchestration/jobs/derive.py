"""The derive job: any derived column over the packed samples, as a version of its own next to the annotations.

`run_derive` plans a unit per packed sample, runs those that are not done, packs them parallel to the media shards and
enters the version in `DATASET.json`; `derive_worker.py` is what a worker does with one unit. All of a version was made
from the same files, settings, versions of other columns and global fits; its name is a hash of these unless the user
gives another. A version that was begun with an earlier version of the column's code goes on with it, by its name.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from orchestration import outcomes, plans
from orchestration.jobs import recovered
from orchestration.jobs.finish import finish_column
from orchestration.jobs.media import MediaSample
from orchestration.jobs.pack import pack_columns
from orchestration.units.executor import Tally, UnitRunner
from orchestration.units.ledger import Ledger
from orchestration.units.records import UnitRecord
from orchestration.units.segment import in_segments
from orchestration.units.unit import JobStoppedError, Unit
from shards.index import Index, read_index
from shards.manifest import AnnotationEntry, DatasetManifest, read_manifest
from talkinghead import dataroot
from talkinghead.annotation import COLUMN
from talkinghead.derived import (
    ANNOTATION,
    MEDIA_NEEDS,
    ColumnVersion,
    DerivedColumn,
    Provenance,
    version_of,
)
from talkinghead.files.storage import Storage
from talkinghead.provenance import library_versions, provenance_key
from talkinghead.schema import SampleIndex, check_version

log = logging.getLogger(__name__)

_LEAST_LIMIT_S = 180.0  # of a unit's wall-clock time: to load what the column opens

# --- the whole job ----------------------------------------------------------------------------------------------------


def run_derive(
    runner: UnitRunner,
    column: DerivedColumn,
    settings: Any,
    *,
    version: str | None = None,
    annotation: str | None = None,
    use: Sequence[str] = (),
) -> str:
    """Make a derived column of every packed sample that has none yet, pack the version's shards, and enter it in
    `DATASET.json`.

    Args:
        runner: Runs the units, on its DATA, which holds a finished data set.
        column: The column.
        settings: Its settings.
        version: Name of the version; None: `ColumnVersion.name`.
        annotation: Annotation version that the column reads; None: the newest.
        use: `COLUMN@VERSION` of other derived columns that it reads; the newest of those that are not named.

    Returns:
        Name of the version.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: A file that the settings name cannot be read, something the column needs is missing, or the name is
            in use for something else.
        JobStoppedError: The machine is at fault.
    """
    storage = runner.storage
    manifest = read_manifest(storage)
    outcomes.check_shards(storage, [shard.name for shard in manifest.media])

    # What the version is made of, and under which name it goes.
    _check_given(column, settings)
    if version is not None:
        column = _as_begun(storage, manifest, column, check_version(version))
    provenance = column.provenance(settings)
    settings = column.settled(settings)
    pinned = _pinned(manifest, column, annotation, use)
    pins = {name: entry.version for name, entry in pinned.items()}
    made_of = version_of(column, settings, provenance, pins, _fits(manifest, column))
    version = check_version(version or made_of.name)
    _recover_plan(storage, column.name, version)
    before = _check_name(storage, manifest, version, made_of)

    # The plan: a unit per packed sample, packed ones as they were made. It is written before anything runs.
    samples = read_index(storage, pinned.get(ANNOTATION) or manifest.annotation())
    keys = samples.texts("key")
    shards = {
        plans.shard_key(number): keys[samples.shard_rows(number)].tolist() for number in range(len(manifest.media))
    }
    packed = outcomes.packed_columns(storage, version)
    sources = list(_sources(storage, manifest, column, samples, pinned))
    placed = _findable(column, settings, provenance)
    units = plan_derive(sources, column, version, placed, made_of, runner.retry.time_limit_s)
    units = plans.keep_packed(units, before, packed)
    # A packed shard stays without the samples that were made only later: their files are deleted with the others.
    dealt = {
        key
        for shard in outcomes.pack_records(storage, plans.pack_annotation_job(version))
        for key in shards.get(shard, ())
    }
    units = [replace(unit, is_freed=True) if unit.key in dealt - packed.keys else unit for unit in units]
    # Committed together are samples of one media shard, in its order.
    units = in_segments(units, shards)
    job = plans.column_job(column.name, version)
    _check_space(storage, job, units, samples, column.size_of_frame(settings))
    segments = {unit.key: unit.segment for unit in units if unit.segment}
    plans.write_plan(storage, job, plans.ColumnPlan(units=plans.pairs(units), made_of=made_of, segments=segments))

    # Make them, on GPUs where the column wants one and the cluster has any.
    tally = runner.run(job, units, gpu_share=_gpu_share(settings))

    # Pack parallel to the media shards (what could not be made is missing there), and let readers see the version.
    made = outcomes.derive_results(storage, column.name, version)
    if made and not any(isinstance(record, UnitRecord) for record in made.values()):
        raise ValueError(
            f"no sample of {storage.uri} could be made, so there is no {version}: see make quarantine, mend the cause,"
            " then make retry"
        )
    pack_columns(runner, version, list(shards.values()), made)
    finish_column(storage, version, samples, made, made_of)
    _remove_unit_files(storage, job)
    _tell(column, tally, version, made)
    return version


def _as_begun(storage: Storage, manifest: DatasetManifest, column: DerivedColumn, version: str) -> DerivedColumn:
    """The column as a version of this name was begun, where that was with an earlier version of its code."""
    entry = next((entry for entry in manifest.of_kind(column.name) if entry.version == version), None)
    if entry is not None:
        return column.of_version(entry.made_of.column_version) or column
    _recover_plan(storage, column.name, version)
    plan = plans.find_plan(storage, plans.column_job(column.name, version))
    begun = plan.made_of.column_version if isinstance(plan, plans.ColumnPlan) else column.version
    return column.of_version(begun) or column


def _recover_plan(storage: Storage, column: str, version: str) -> None:
    """Where the plan of a version is damaged or gone, write what the records of packed samples say of it."""
    name = plans.column_job(column, version)
    plans.set_aside_damaged(storage, name)
    if plans.find_plan(storage, name) is None and (plan := recovered.column_plan(storage, column, version)) is not None:
        plans.write_plan(storage, name, plan)


def unset(settings: type) -> Any:
    """Settings with their defaults, in which what has none is empty: `run_derive` asks for it by its name."""
    required = [field.name for field in fields(settings) if is_required(field)]
    return settings(**dict.fromkeys(required, ""))


def is_required(field: Field[Any]) -> bool:
    """Whether a setting has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def _check_given(column: DerivedColumn, settings: Any) -> None:
    """Raise `ValueError` unless every setting without a default has a value."""
    for field in fields(settings):
        if is_required(field) and getattr(settings, field.name) == "":
            option = field.name.replace("_", "-")
            raise ValueError(f"{column.name} needs --{column.name}.{option}: make derive ARGS=--help says what it is")


def _findable(column: DerivedColumn, settings: Any, provenance: Provenance) -> Any:
    """Settings with absolute paths of their files: a worker elsewhere has another working folder."""
    changed = {}
    for name in provenance:
        value = getattr(settings, name)
        # A folder may be called like something built in; the name wins, as it does in loading.
        if isinstance(value, str) and value not in column.built_in and Path(value).exists():
            changed[name] = str(Path(value).resolve())
    return replace(settings, **changed)


def _pinned(
    manifest: DatasetManifest, column: DerivedColumn, annotation: str | None, use: Sequence[str]
) -> dict[str, AnnotationEntry]:
    """`annotation` or name of another column → entry of the version that the column will read."""
    chosen = {name.partition("@")[0]: name for name in use}
    pinned: dict[str, AnnotationEntry] = {}
    others = [need for need in column.needs if need not in MEDIA_NEEDS and need not in COLUMN]
    if len(others) + sum(need in MEDIA_NEEDS for need in column.needs) < len(column.needs):
        entry = manifest.annotation(annotation)
        if entry.kind != ANNOTATION:
            raise ValueError(f"{entry.version} holds {entry.kind}; {column.name} is made of a face annotation")
        pinned[ANNOTATION] = entry
    for name in others:
        try:
            pinned[name] = manifest.derived(chosen.pop(name, name))
        except ValueError as error:
            raise ValueError(f"{column.name} is made of {name}: {error}") from None
    if chosen:
        raise ValueError(
            f"{column.name} reads no column {', '.join(sorted(chosen))}; it reads {', '.join(column.needs)}"
        )
    return pinned


def _fits(manifest: DatasetManifest, column: DerivedColumn) -> dict[str, str]:
    """Global fit that the column needs → SHA-256 of the newest."""
    newest = {entry.name: entry.sha256 for entry in manifest.fits}
    if missing := [name for name in column.fits if name not in newest]:
        raise ValueError(f"{column.name} needs the global fit {missing[0]}: run make basis FITS={missing[0]}")
    return {name: newest[name] for name in column.fits}


def _check_name(storage: Storage, manifest: DatasetManifest, version: str, made_of: ColumnVersion) -> Mapping[str, str]:
    """Check that the name is free, or that of the same column made of the same.

    Returns:
        Sample key → provenance key of the units that were planned under this name before.

    Raises:
        ValueError: The name belongs to a face annotation, to another column, or to other settings or files.
    """
    others = {entry.version: entry.kind for entry in manifest.annotations if entry.kind != made_of.column}
    if version in others:
        raise ValueError(f"{version} is in use for {others[version]}: choose another --version for {made_of.column}")
    if plans.find_annotate(storage, version):
        raise ValueError(f"{version} is in use for an annotation: choose another --version for {made_of.column}")
    before = plans.column_plan_named(storage, version)
    if before is not None and before.made_of.column != made_of.column:
        raise ValueError(
            f"{version} is in use for {before.made_of.column}: choose another --version for {made_of.column}"
        )
    if before is not None and not before.made_of.is_same(made_of):
        raise ValueError(
            f"{version} was begun by another release, with other files or settings ({before.made_of.parameters}):"
            " choose another --version, or none"
        )
    return before.units if before else {}


def _check_space(storage: Storage, job: str, units: Sequence[Unit], samples: Index, frame_bytes: float) -> None:
    """Raise `JobStoppedError` before hours of work whose results would not fit on the disk."""
    ledger = Ledger(storage, job)
    pending = {unit.key for unit in units if not ledger.is_done(unit)}
    keys, lengths = samples.texts("key"), samples.numbers("num_frames")
    frames = sum(int(length) for key, length in zip(keys, lengths, strict=True) if key in pending)
    if not frames:
        return
    # Twice, because a result is in its unit's file until its shard is packed.
    wanted = 2 * frames * frame_bytes
    log.info("%s: %d frames to make, %.3g GB", job, frames, frames * frame_bytes / 1e9)
    if storage.local_root is not None and (free := shutil.disk_usage(storage.local_root).free) < wanted:
        raise JobStoppedError(
            f"{job}: {frames} frames at {frame_bytes / 1024:.1f} KiB each need {wanted / 1e9:.3g} GB while they are"
            f" packed (half of it then stays); {storage.uri} has {free / 1e9:.3g} GB left: make room, or choose other"
            " settings"
        )


def _gpu_share(settings: Any) -> float:
    return float(settings.gpu_share) if getattr(settings, "device", "cpu") == "cuda" else 0.0


def _remove_unit_files(storage: Storage, job: str) -> None:
    """Columns may be large, and a packed shard never changes: the units' own files are not needed any more."""
    for file in storage.list(dataroot.units(job), ".tar"):
        if dataroot.is_unit(file.path, job):
            storage.delete(file.path)


def _tell(column: DerivedColumn, tally: Tally, version: str, made: outcomes.Results) -> None:
    """Log the speed of what was made now, and a table of labels that fits no clip."""
    samples = [record.samples[0] for record in made.values() if isinstance(record, UnitRecord)]
    if column.gives_labels and samples and not any(sample.labels for sample in samples):
        log.warning("%s: no clip has a label: do the names in the settings and files fit this data set?", version)
    if tally.committed:
        speed = tally.frames / max(tally.wall_seconds, 1e-9)
        log.info("%s: %d frames, %.1f frames/s", version, tally.frames, speed)


# --- its units --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """One packed sample, as the place where each of its inputs lies."""

    key: str
    num_frames: int
    payload: dict[str, Any]
    """Part of a unit's payload from which `StoredSample` reads."""
    inputs: dict[str, Any]
    """Hashes of the shards that it lies in, for the provenance key."""


def _sources(
    storage: Storage,
    manifest: DatasetManifest,
    column: DerivedColumn,
    samples: Index,
    pinned: Mapping[str, AnnotationEntry],
) -> Iterator[Source]:
    """Every packed sample, kept by the filters or not: filters may change, shards do not."""
    indexes = {name: samples if name == ANNOTATION else read_index(storage, entry) for name, entry in pinned.items()}
    for name, index in indexes.items():
        if not index.table.column("key").equals(samples.table.column("key")):
            raise ValueError(f"{pinned[name].version} lacks samples: run {pinned[name].command} to bring it up to date")
    # What is the same for all samples, or all of a shard, is in memory once.
    forms = [_forms(column, entry) for entry in pinned.values()]
    shards = [
        {entry.version: entry.shards[number].sha256 for entry in pinned.values()}
        for number in range(len(manifest.media))
    ]
    for row, *others in zip(samples.rows(), *(index.rows() for index in indexes.values()), strict=True):
        inputs: dict[str, Any] = {"key": row.key}
        media = manifest.media[row.shard]
        if set(column.needs) & set(MEDIA_NEEDS):
            inputs["shard"] = media.sha256
        columns = [
            _place(entry, other, *form) for entry, other, form in zip(pinned.values(), others, forms, strict=True)
        ]
        if columns:
            inputs["columns"] = shards[row.shard]
        place = MediaSample(
            key=row.key,
            num_frames=row.num_frames,
            file=media.name,
            members=tuple(row.media),
            content_sha256=media.sha256,
        )
        payload = place.payload() | {"num_frames": row.num_frames, "speaker": row.speaker, "columns": columns}
        yield Source(key=row.key, num_frames=row.num_frames, payload=payload, inputs=inputs)


def _forms(column: DerivedColumn, entry: AnnotationEntry) -> tuple[set[str], list[dict[str, Any]]]:
    """Members of one version that a column reads, and the forms of derived ones."""
    forms = {} if entry.kind == ANNOTATION else entry.arrays
    names = [need for need in column.needs if need in COLUMN] if entry.kind == ANNOTATION else list(forms)
    return {f"{name}.npy" for name in names}, [form.to_json() for form in forms.values()]


def _place(entry: AnnotationEntry, row: SampleIndex, wanted: set[str], forms: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the arrays of one version lie that a column reads of a sample."""
    return {
        "version": entry.version,
        "file": entry.shards[row.shard].name,
        "members": [asdict(member) for member in row.annotation if member.suffix in wanted],
        "forms": forms,
    }


def plan_derive(
    sources: Sequence[Source],
    column: DerivedColumn,
    version: str,
    settings: Any,
    made_of: ColumnVersion,
    time_limit_s: float | None,
) -> list[Unit]:
    """Plan one unit per packed sample, in key order.

    Args:
        sources: Packed samples.
        column: The column.
        version: Name of the version.
        settings: Settings of the column (their files at paths that hold on every node).
        made_of: What the version is made of.
        time_limit_s: Wall-clock limit of a unit in seconds; None: from the number of its frames.
    """
    libraries = library_versions(*column.libraries)
    models = {name: about["sha256"] for name, about in made_of.provenance.items()}
    # What differs from sample to sample is a key's `inputs`; pins are in them, by the content of their shards.
    shared = {"fits": made_of.fits} if made_of.fits else {}
    common = {"column": column.name, "settings": asdict(settings), "made_of": asdict(made_of)}
    return [
        Unit(
            job=plans.column_job(column.name, version),
            key=source.key,
            pkey=provenance_key(
                column.stored_names.provenance,
                column.version,
                parameters=made_of.parameters,
                inputs=source.inputs | shared,
                models=models,
                libraries=libraries,
            ),
            function="orchestration.jobs.derive_worker:run",
            payload=source.payload | common,
            source=source.key,
            time_limit_s=time_limit_s or _LEAST_LIMIT_S + column.frame_seconds(settings) * source.num_frames,
            frames=source.num_frames,
        )
        for source in sorted(sources, key=lambda source: source.key)
    ]
