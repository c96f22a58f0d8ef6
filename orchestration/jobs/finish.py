"""The data set as readers see it: the index of an annotation version, and `DATASET.json`, replaced last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from annotate.filters import FilterSettings, judge
from orchestration import results
from orchestration.job_names import PACK_MEDIA_JOB, annotate_job, pack_annotation_job, shard_key
from orchestration.jobs.pack import SHARD_PLAN, shard_settings
from orchestration.overrides import settings_with
from orchestration.plans import read_plan
from orchestration.units.records import SampleRecord, UnitRecord
from shards.index import Index, build_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.plan import plan_hash
from shards.splits import assign_splits
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import library_versions
from talkinghead.schema import Rejection, SampleIndex

log = logging.getLogger(__name__)

FAILED = "annotate_failed"
TOOLS = ("talkinghead", "av", "mediapipe", "ai-edge-litert", "opencv-contrib-python", "numpy", "ray")


def finish(storage: Storage, version: str, overrides: Sequence[str] = ()) -> DatasetManifest:
    """Write the version's index and replace `DATASET.json`. Reads records only, no media.

    So filter thresholds can be changed and applied again at any time.

    Args:
        storage: DATA; every shard of the plan is packed.
        version: Annotation version.
        overrides: `FilterSettings` as NAME=VALUE; the others stay as they are in `DATASET.json`.
    """
    before = _manifest(storage)
    filters = settings_with(FilterSettings, _known_filters(before, version), overrides)
    plan = read_plan(storage, SHARD_PLAN)["shards"]
    shards = _packed(storage, version, len(plan))
    index = build_index(version, _rows(storage, version, shards, filters))
    path, index_sha256 = write_index(storage, index)
    entry = _entry(storage, index, path, index_sha256, shards, filters)
    others = _other_versions(before, version, len(plan))
    manifest = _describe(index, shards, plan, in_order(storage, [*others, entry]))
    write_manifest(storage, manifest)
    remove_old_indexes(storage, before, manifest)
    return manifest


@dataclass(frozen=True, kw_only=True)
class PackedPair:
    """One shard: its media and its annotation."""

    media: UnitRecord
    annotation: UnitRecord


def _packed(storage: Storage, version: str, num_shards: int) -> list[PackedPair]:
    media = results.pack_records(storage, PACK_MEDIA_JOB)
    annotation = results.pack_records(storage, pack_annotation_job(version))
    names = [shard_key(number) for number in range(num_shards)]
    return [PackedPair(media=media[name], annotation=annotation[name]) for name in names]


def _rows(
    storage: Storage, version: str, shards: Sequence[PackedPair], filters: FilterSettings
) -> Iterator[SampleIndex]:
    ingested = results.ingested_samples(results.ingest_results(storage))
    annotated = results.annotate_results(storage, version)
    groups = (item.record.details["split_group"] for item in ingested.values())
    settings = shard_settings(storage)
    splits = assign_splits(groups, seed=settings.seed, fractions=settings.fractions)
    late = 0
    for number, pair in enumerate(shards):
        blank = pair.annotation.details.get("blank", ())
        for ordinal, (clip, columns) in enumerate(zip(pair.media.samples, pair.annotation.samples, strict=True)):
            assert clip.key == columns.key
            record = annotated.get(clip.key)
            scores: dict[str, float | None] = {}
            verdict: Rejection | None = Rejection(reason=FAILED)
            if clip.key in blank:
                late += isinstance(record, UnitRecord)
            elif isinstance(record, UnitRecord):
                scores = record.samples[0].scores
                verdict = judge(scores, filters)
            yield _row(number, ordinal, ingested[clip.key].record, splits, clip, columns, scores, verdict)
    if late:
        log.warning(
            "%d samples were annotated only after their shard of %s was packed without them; "
            "make reannotate ANN=<new version> takes them in", late, version,
        )  # fmt: skip


def _row(
    shard: int,
    ordinal: int,
    about: UnitRecord,
    splits: dict[str, str],
    clip: SampleRecord,
    columns: SampleRecord,
    scores: dict[str, float | None],
    verdict: Rejection | None,
) -> SampleIndex:
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
        person=about.details["person"],
        licence=about.details["licence"],
        keep=verdict is None,
        reason=verdict.reason if verdict else None,
        reason_score=verdict.score if verdict else None,
        media=clip.members,
        annotation=columns.members,
        scores=scores,
    )


def _entry(
    storage: Storage, index: Index, path: str, sha256: str, shards: Sequence[PackedPair], filters: FilterSettings
) -> AnnotationEntry:
    about = read_plan(storage, annotate_job(index.version))
    keep = index.numbers("keep")
    return AnnotationEntry(
        version=index.version,
        index=path,
        index_sha256=sha256,
        shards=[shard_entry(pair.annotation) for pair in shards],
        samples=len(index),
        kept=int(keep.sum()),
        splits=dict(sorted(Counter(index.texts("split")[keep]).items())),
        details={
            "engine": about["settings"]["engine"],
            "settings": about["settings"],
            "model": about["model"],
            "model_sha256": about["model_sha256"],
            "filters": asdict(filters),
        },
    )


def _describe(
    index: Index, shards: Sequence[PackedPair], plan: list[list[str]], annotations: list[AnnotationEntry]
) -> DatasetManifest:
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
        plan_hash=plan_hash(plan),
        media=[shard_entry(pair.media) for pair in shards],
        annotations=annotations,
    )


def shard_entry(record: UnitRecord) -> ShardEntry:
    """A packed shard as `DATASET.json` lists it."""
    assert record.file and record.file_sha256
    return ShardEntry(
        name=record.file,
        sha256=record.file_sha256,
        size=record.file_bytes,
        samples=len(record.samples),
        frames=sum(sample.num_frames for sample in record.samples),
    )


def _manifest(storage: Storage) -> DatasetManifest | None:
    return read_manifest(storage) if storage.exists(dataroot.DATASET_JSON) else None


def _known_filters(before: DatasetManifest | None, version: str) -> dict[str, float | bool | None]:
    """Thresholds of the version, else of the newest one: a new version is judged like the one before."""
    faces = before.of_kind("annotation") if before else []
    if not faces:
        return {}
    entries = {entry.version: entry for entry in faces}
    return entries.get(version, faces[-1]).details["filters"]


def _other_versions(before: DatasetManifest | None, version: str, num_shards: int) -> list[AnnotationEntry]:
    """Entries of the other versions that cover every shard; new shards leave an older version behind."""
    entries = []
    for entry in before.annotations if before else ():
        if len(entry.shards) < num_shards and entry.version != version:
            name = entry.version
            how = "make latents" if entry.kind == "latents" else f"make reannotate ANN={name}"
            log.warning("%s %s does not cover the new shards: %s extends it", entry.kind, name, how)
        elif entry.version != version:
            entries.append(entry)
    return entries


def in_order(storage: Storage, entries: Sequence[AnnotationEntry]) -> list[AnnotationEntry]:
    """Face annotations in the order in which they were first made: the last is what readers open by default. Then
    the others, by name."""
    faces = [entry for entry in entries if entry.kind == "annotation"]
    others = [entry for entry in entries if entry.kind != "annotation"]
    # Only where it matters: data sets of one version need no plans (they may have been copied without).
    if len(faces) > 1:
        faces.sort(key=lambda entry: read_plan(storage, annotate_job(entry.version))["order"])
    return faces + sorted(others, key=lambda entry: entry.version)


def remove_old_indexes(storage: Storage, before: DatasetManifest | None, after: DatasetManifest) -> None:
    """Keep the indexes that the new and the last `DATASET.json` name: somebody may just be opening the last one."""
    named = {entry.index for manifest in (before, after) if manifest for entry in manifest.annotations}
    for file in storage.list(dataroot.INDEX_FOLDER):
        if file.path not in named:
            storage.delete(file.path)


def current_version(storage: Storage) -> str | None:
    """The newest face annotation, None when there is no finished data set."""
    manifest = _manifest(storage)
    return manifest.annotation().version if manifest else None
