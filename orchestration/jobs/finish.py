"""Finishing a version: its index, then `DATASET.json`, which is replaced last and makes the version visible to readers.

`finish` enters a face annotation, `finish_column` a version of a derived column. Both read records only, no media, and
write an index of the same samples in the same places, so that the columns of several versions are joined row by row.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from annotate.filters import FilterSettings, judge
from orchestration import outcomes, plans
from orchestration.jobs.pack import PackedFrom, shard_settings
from orchestration.overrides import settings_with
from orchestration.plans import PACK_MEDIA_JOB, shard_key
from orchestration.split_groups import join_splits, related_groups, split_settings, splits_of
from orchestration.units.records import SampleRecord, UnitRecord
from shards.index import Index, build_index, read_index, write_index
from shards.manifest import (
    AnnotationEntry,
    DatasetManifest,
    ShardEntry,
    find_manifest,
    read_manifest,
    write_manifest,
)
from shards.pins import pinned_indexes
from shards.plan import plan_hash
from talkinghead import dataroot
from talkinghead.derived import ANNOTATION, ColumnVersion
from talkinghead.files.storage import Storage
from talkinghead.provenance import library_versions
from talkinghead.schema import Member, Rejection, SampleIndex

log = logging.getLogger(__name__)

ANNOTATE_FAILED = "annotate_failed"
"""Reason of samples that are not kept because the version has no columns for them."""
# Their versions are noted in `DATASET.json`.
TOOLS = ("talkinghead", "av", "mediapipe", "ai-edge-litert", "opencv-contrib-python", "numpy", "ray")


def current_version(storage: Storage) -> str | None:
    """Name of the newest face annotation, None when there is no finished data set."""
    manifest = find_manifest(storage)
    return manifest.annotation().version if manifest else None


# --- a face annotation ------------------------------------------------------------------------------------------------


def finish(
    storage: Storage,
    version: str,
    overrides: Sequence[str] = (),
    known: PackedFrom | None = None,
) -> DatasetManifest:
    """Write the annotation version's index and replace `DATASET.json`.

    No media are read, so filter thresholds can be changed and applied again at any time.

    Args:
        storage: DATA, in which every shard of the plan is packed.
        version: Name of the annotation version.
        overrides: `FilterSettings` as NAME=VALUE; the others stay as they are in `DATASET.json`.
        known: Outcomes of the samples, as `run_pack` has read them; None: they are read here.

    Returns:
        The new content of `DATASET.json`.
    """
    # Thresholds: what the user names, else those in use.
    before = find_manifest(storage)
    filters = settings_with(FilterSettings, _known_filters(before, version), overrides)

    # The index: every packed sample, where it lies, and whether the filters keep it.
    about, planned = plans.find_annotate(storage, version), plans.find_shards(storage)
    if about is None or planned is None:
        raise ValueError(f"{storage.uri} has no plan of annotation version {version} and its shards: run make shards")
    shards = planned.shards
    media = _packed(storage, PACK_MEDIA_JOB, len(shards))
    columns = _packed(storage, plans.pack_annotation_job(version), len(shards))
    known = known or PackedFrom(
        ingested=outcomes.ingested_samples(storage), annotated=outcomes.annotate_results(storage, version)
    )
    index = build_index(version, _annotation_rows(storage, version, media, columns, filters, known))

    # `DATASET.json`: the data set as it is now, with this version among the others.
    details = {
        "engine": about.settings["engine"],
        "settings": about.settings,
        "model": about.model,
        "model_sha256": about.model_sha256,
        "filters": asdict(filters),
        "splits": split_settings(shard_settings(storage)),
    }
    entry = _write_version(storage, index, columns, ANNOTATION, details)
    others = _other_versions(before, version, len(shards))
    moved = _with_media(storage, others, before.media if before else (), media)
    renamed = {was.index: now.index for was, now in zip(others, moved, strict=True)}
    # One atomic write switches readers from the old data set to the new one; until then nothing that they use changed.
    after = _describe(index, media, shards, _in_order(storage, [*moved, entry]))
    fits = [replace(fit, index=renamed.get(fit.index, fit.index)) for fit in (before.fits if before else [])]
    after = replace(after, fits=fits)
    write_manifest(storage, after)
    if before is None:
        _say_what_is_not_listed(storage, after)
    if not after.counts["kept"] and len(index):
        reasons = Counter(index.texts("reason")).most_common(3)
        log.warning(
            "the filters keep none of the %d samples (%s), so nothing can be trained on: make report shows them; other"
            " thresholds with ARGS='--filters NAME=VALUE …'",
            len(index), ", ".join(f"{number} {reason}" for reason, number in reasons),
        )  # fmt: skip
    _remove_old_indexes(storage, before, after)
    return after


def _say_what_is_not_listed(storage: Storage, after: DatasetManifest) -> None:
    """A warning where versions were made that a `DATASET.json` which was lost has listed, and this one does not."""
    listed = {entry.version for entry in after.annotations}
    faces = [name.removeprefix(plans.ANNOTATE_PREFIX) for name in plans.plan_names(storage, plans.ANNOTATE_PREFIX)]
    columns = set()
    for name in plans.plan_names(storage, *plans.COLUMN_PREFIXES):
        plan = plans.find_plan(storage, name)
        if isinstance(plan, plans.ColumnPlan) and name.partition("-")[2] not in listed:
            columns.add(plan.made_of.column)
    commands = [f"make shards ANN={version}" for version in faces if version not in listed]
    commands += [f"make derive COLUMNS={','.join(sorted(columns))}"] if columns else []
    if commands:
        log.warning(
            "%s is new and does not list what else DATA holds: %s lists it again",
            storage.describe("DATASET.json"), ", ".join(commands),
        )  # fmt: skip


def _known_filters(before: DatasetManifest | None, version: str) -> dict[str, float | bool | None]:
    """Thresholds of the version, else those of the newest one: a new version is filtered like the one before."""
    faces = before.of_kind(ANNOTATION) if before else []
    if not faces:
        return {}
    entries = {entry.version: entry for entry in faces}
    return entries.get(version, faces[-1]).details.get("filters", {})


def _annotation_rows(
    storage: Storage,
    version: str,
    media: Sequence[UnitRecord],
    columns: Sequence[UnitRecord],
    filters: FilterSettings,
    known: PackedFrom,
) -> Iterator[SampleIndex]:
    """Rows of the index, in the order of the shards: facts and notes from ingest, scores and verdict from annotation.

    Args:
        storage: DATA, the data set's folder or bucket.
        version: Name of the annotation version.
        media: Records of the media shards, by number.
        columns: Records of the version's shards, parallel to them.
        filters: Thresholds of the scores.
        known: Outcomes of the samples.
    """
    ingested, annotated = known.ingested, known.annotated
    # Splits are dealt to whole groups (a person, a source video), from the same plan settings for every version.
    groups = (item.record.details["split_group"] for item in ingested.values())
    splits = _splits(storage, list(groups))
    late = 0
    for number, (media_shard, column_shard) in enumerate(zip(media, columns, strict=True)):
        blank = outcomes.blank_rows(column_shard)
        keys = [clip.key for clip in media_shard.samples]
        if keys != [columns.key for columns in column_shard.samples]:
            raise ValueError(f"{column_shard.file} does not hold the samples of {media_shard.file}, by their records")
        if lost := set(keys) - ingested.keys():
            raise ValueError(f"{media_shard.file} holds {min(lost)}, which no ingest plan and record name")
        for ordinal, (clip, annotation) in enumerate(zip(media_shard.samples, column_shard.samples, strict=True)):
            record = annotated.get(clip.key)
            scores: dict[str, float | None] = {}
            verdict: Rejection | None = Rejection(reason=ANNOTATE_FAILED)
            # A row of NaN stays one, even if the sample was annotated after its shard was packed.
            if clip.key in blank:
                late += isinstance(record, UnitRecord)
            elif isinstance(record, UnitRecord):
                scores = record.samples[0].scores
                verdict = judge(scores, filters)
            yield _row(number, ordinal, ingested[clip.key], splits, clip, annotation, scores, verdict)
    if late:
        log.warning(
            "%d samples were annotated only after their shard of %s was packed without them; "
            "make reannotate ANN=<new version> takes them in", late, version,
        )  # fmt: skip


def _splits(storage: Storage, groups: list[str]) -> dict[str, str]:
    """Split of each group. Where the index that says them is gone or damaged, that of another version says them."""
    settings = shard_settings(storage)
    manifest = find_manifest(storage)
    faces = manifest.of_kind(ANNOTATION) if manifest else []
    try:
        if faces:
            read_index(storage, faces[-1])
    except (FileNotFoundError, ValueError) as error:
        before: dict[str, str] = {}
        for entry in (manifest.annotations if manifest else [])[::-1]:
            with contextlib.suppress(FileNotFoundError, ValueError):
                index = read_index(storage, entry)
                before = dict(zip(index.texts("split_group").tolist(), index.texts("split").tolist(), strict=True))
        whence = "those of another version" if before else "dealt anew, by the same seed"
        log.warning("%s; the splits are %s", re.split("[:;] make ", str(error))[0], whence)
        related = related_groups(storage).groups
        for name in groups:
            related.root(name)
        splits, _ = join_splits(related.members().values(), before, settings)
        return {name: splits[name] for name in groups}
    return splits_of(storage, groups, settings)


def _row(
    shard: int,
    ordinal: int,
    ingested: outcomes.IngestedSample,
    splits: Mapping[str, str],
    clip: SampleRecord,
    annotation: SampleRecord,
    scores: dict[str, float | None],
    verdict: Rejection | None,
) -> SampleIndex:
    """One row of the index, from what ingest made, its place in the media shard, and its columns."""
    about = ingested.record
    group = about.details["split_group"]
    return SampleIndex(
        key=clip.key,
        clip_key=about.key,
        dataset=about.details["dataset"],
        shard=shard,
        ordinal=ordinal,
        num_frames=clip.num_frames,
        split=splits[group],
        split_group=group,
        person=about.details.get("person"),
        licence=about.details["licence"],
        keep=verdict is None,
        reason=verdict.reason if verdict else None,
        reason_score=verdict.score if verdict else None,
        media=clip.members,
        annotation=annotation.members,
        scores=scores,
        notes=ingested.notes,
    )


def _other_versions(before: DatasetManifest | None, version: str, num_shards: int) -> list[AnnotationEntry]:
    """Entries of the other versions that cover every shard. A version that lacks new shards is no longer listed."""
    entries = []
    for entry in before.annotations if before else ():
        if len(entry.shards) < num_shards and entry.version != version:
            log.warning("%s %s does not cover the new shards: %s extends it", entry.kind, entry.version, entry.command)
        elif entry.version != version:
            entries.append(entry)
    return entries


def _with_media(
    storage: Storage,
    entries: Sequence[AnnotationEntry],
    before: Sequence[ShardEntry],
    media: Sequence[UnitRecord],
) -> list[AnnotationEntry]:
    """Entries of other versions, whose indexes say where the media lie now: a shard that was lost after samples were
    removed from it is packed again without them, in another file."""
    changed = [now for was, now in zip(before, media, strict=False) if was.sha256 != now.file_sha256]
    places = {sample.key: sample.members for record in changed for sample in record.samples}
    if not places:
        return list(entries)
    found = []
    for entry in entries:
        rows = read_index(storage, entry).rows()
        index = build_index(entry.version, (replace(row, media=places.get(row.key, row.media)) for row in rows))
        path, sha256 = write_index(storage, index)
        found.append(replace(entry, index=path, index_sha256=sha256))
    return found


def _describe(
    index: Index, media: Sequence[UnitRecord], shards: list[list[str]], annotations: list[AnnotationEntry]
) -> DatasetManifest:
    """Content of `DATASET.json`; its counts are those of the version that was just made."""
    frames, keep = index.numbers("num_frames"), index.numbers("keep")
    return DatasetManifest(
        datasets=sorted(set(index.texts("dataset"))),
        counts={
            "samples": len(index),
            "kept": int(keep.sum()),
            "frames": int(frames.sum()),
            "frames_kept": int(frames[keep].sum()),
        },
        licences=dict(sorted(Counter(index.texts("licence")).items())),
        tool_versions=library_versions(*TOOLS),
        plan_hash=plan_hash(shards),
        media=[_shard_entry(record) for record in media],
        annotations=annotations,
    )


# --- a version of a derived column ------------------------------------------------------------------------------------


def finish_column(
    storage: Storage, version: str, samples: Index, made: outcomes.Results, made_of: ColumnVersion
) -> None:
    """Write the index of a version of a derived column and replace `DATASET.json`.

    Args:
        storage: DATA, in which every shard of the version is packed.
        version: Name of the version.
        samples: Index of a face annotation, for all samples and their places in the media shards.
        made: Sample key → outcome of its unit.
        made_of: What the version was made of.
    """
    # Where each sample's arrays are. What the shards lack is said here, since the index only marks it.
    before = read_manifest(storage)
    columns = _packed(storage, plans.pack_annotation_job(version), len(before.media))
    places = {sample.key: sample.members for record in columns for sample in record.samples}
    if late := sum(key not in places and isinstance(record, UnitRecord) for key, record in made.items()):
        log.warning(
            "%d samples were made only after their shard of %s was packed without them: shards never change. Drop the"
            " version (python -m shards drop) and derive it again, or give it another --version", late, version,
        )  # fmt: skip
    if failed := len(samples) - len(places) - late:
        log.warning("%s lacks %d of %d samples that could not be made: make quarantine", version, failed, len(samples))
    # Scores and labels stand in the records of the units: packing has only copied bytes.
    known = {key: record.samples[0] for key, record in made.items() if isinstance(record, UnitRecord) and key in places}
    index = build_index(version, _column_rows(samples, places, known, plans.stored_names(made_of.column).failed))
    # The index, then `DATASET.json` with the version among the others: the rest of the data set stays as it is.
    labels = sorted({name for sample in known.values() for name in sample.labels})
    details = asdict(replace(made_of, labels=labels))
    entry = _write_version(storage, index, columns, made_of.column, details)
    names = [other.version for other in before.annotations]
    entries = [entry if other.version == version else other for other in before.annotations]
    if version not in names:
        entries.append(entry)
    after = replace(before, annotations=_in_order(storage, entries))
    write_manifest(storage, after)
    _remove_old_indexes(storage, before, after)


def _column_rows(
    samples: Index, places: Mapping[str, list[Member]], known: Mapping[str, SampleRecord], failed: str
) -> Iterator[SampleIndex]:
    """Rows of the same samples in the same places; one that could not be made has no members and is not kept."""
    for row in samples.rows():
        members, about = places.get(row.key, []), known.get(row.key)
        yield replace(
            row,
            keep=bool(members),
            reason=None if members else failed,
            reason_score=None,
            annotation=members,
            scores=about.scores if about else {},
            labels=about.labels if about else {},
            notes=[],  # of the clip: they stand in the annotation's index
        )


# --- shared by both ---------------------------------------------------------------------------------------------------


def _packed(storage: Storage, job: str, num_shards: int) -> list[UnitRecord]:
    """Commit records of a pack job's shards, by shard number."""
    records = outcomes.pack_records(storage, job)
    if missing := {shard_key(number) for number in range(num_shards)} - records.keys():
        raise ValueError(f"{min(missing)} of {job} is not packed in {storage.uri}")
    return [records[shard_key(number)] for number in range(num_shards)]


def _write_version(
    storage: Storage, index: Index, columns: Sequence[UnitRecord], kind: str, details: dict[str, Any]
) -> AnnotationEntry:
    """Write a version's index; returns its entry for `DATASET.json`."""
    path, sha256 = write_index(storage, index)
    keep = index.numbers("keep")
    return AnnotationEntry(
        version=index.version,
        index=path,
        index_sha256=sha256,
        shards=[_shard_entry(record) for record in columns],
        samples=len(index),
        kept=int(keep.sum()),
        splits=dict(sorted(Counter(index.texts("split")[keep]).items())),
        kind=kind,
        details=details,
    )


def _shard_entry(record: UnitRecord) -> ShardEntry:
    """Entry of a packed shard for `DATASET.json`."""
    assert record.file and record.file_sha256
    return ShardEntry(
        name=record.file,
        sha256=record.file_sha256,
        size=record.file_bytes,
        samples=len(record.samples),
        frames=sum(sample.num_frames for sample in record.samples),
        removed=record.details.get("removed", 0),
    )


def _in_order(storage: Storage, entries: Sequence[AnnotationEntry]) -> list[AnnotationEntry]:
    """Face annotations in the order in which they were first made, then derived columns in the order given.

    Readers that name no version open the last of its kind.
    """
    faces = [entry for entry in entries if entry.kind == ANNOTATION]
    # Only where it matters: data sets of one version need no plans (they may have been copied without).
    if len(faces) > 1:
        orders = {entry.version: plans.find_annotate(storage, entry.version) for entry in faces}
        if lost := [version for version, plan in orders.items() if plan is None]:
            raise ValueError(f"{storage.uri} has no plan of annotation version {lost[0]}: put its plans folder back")
        faces.sort(key=lambda entry: plan.order if (plan := orders[entry.version]) else 0)
    return faces + [entry for entry in entries if entry.kind != ANNOTATION]


def _remove_old_indexes(storage: Storage, before: DatasetManifest | None, after: DatasetManifest) -> None:
    """Delete the indexes that neither the new nor the last `DATASET.json` names, nor a run has pinned: a reader may be
    opening the last, and by its index it can be told what a run has learnt from.

    Whatever else lies in their folder stays.
    """
    named = {entry.index for manifest in (before, after) if manifest for entry in manifest.annotations}
    try:
        named |= pinned_indexes(storage)
    except ValueError as error:
        # The data set is finished; what the run needs that this pin is of, nobody knows.
        log.warning("%s; until then no index of an earlier command is deleted", error)
        return
    for file in storage.list(dataroot.INDEX_FOLDER):
        if file.path not in named and dataroot.is_index(file.path):
            storage.delete(file.path)
