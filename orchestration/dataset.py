"""The data set as readers see it: the index of an annotation version, and `DATASET.json`, replaced last."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from annotate.filters import FilterSettings, judge
from orchestration import state
from orchestration.jobs import annotate, pack
from orchestration.jobs.plans import read_plan
from orchestration.records import UnitRecord
from orchestration.steps import SHARD_PLAN
from shards.index import build_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.plan import plan_hash
from shards.splits import assign_splits
from talkinghead.config import from_json
from talkinghead.provenance import library_versions
from talkinghead.schema import Rejection, SampleIndex
from talkinghead.storage import Storage

log = logging.getLogger(__name__)

FAILED = "annotate_failed"
TOOLS = ("talkinghead", "av", "mediapipe", "ai-edge-litert", "opencv-contrib-python", "numpy", "ray")


def finish(storage: Storage, version: str, filters: FilterSettings, split_seed: int) -> DatasetManifest:
    """Write the version's index and replace `DATASET.json`. Reads records only, no media.

    So filter thresholds can be changed and applied again at any time.
    """
    plan = read_plan(storage, SHARD_PLAN)["shards"]
    media = state.pack_records(storage, pack.MEDIA_JOB)
    annotation = state.pack_records(storage, pack.annotation_job(version))
    ingested = state.ingested_samples(state.ingest_results(storage))
    annotated = state.annotate_results(storage, version)
    groups = (item.record.details["split_group"] for item in ingested.values())
    splits = assign_splits(groups, seed=split_seed)
    numbers = range(len(plan))

    def rows() -> Iterator[SampleIndex]:
        for number in numbers:
            name = pack.shard_key(number)
            pairs = zip(media[name].samples, annotation[name].samples, strict=True)
            for ordinal, (clip, columns) in enumerate(pairs):
                assert clip.key == columns.key
                record = annotated.get(clip.key)
                scores = record.samples[0].scores if isinstance(record, UnitRecord) else {}
                verdict = judge(scores, filters) if scores else Rejection(reason=FAILED)
                about = ingested[clip.key].record
                yield SampleIndex(
                    key=clip.key,
                    clip_key=about.key,
                    dataset=about.details["dataset"],
                    shard=number,
                    ordinal=ordinal,
                    num_frames=clip.num_frames,
                    split=splits[about.details["split_group"]],
                    split_group=about.details["split_group"],
                    person=about.details["person"],
                    licence=about.details["licence"],
                    keep=verdict is None,
                    reason=verdict.reason if verdict else None,
                    reason_score=verdict.score if verdict else None,
                    media=clip.members,
                    annotation=columns.members,
                    scores=scores,
                )

    index = build_index(version, rows())
    index_sha256 = write_index(storage, index)
    all_rows = list(index.rows())
    kept = [row for row in all_rows if row.keep]
    about = read_plan(storage, annotate.job_name(version))
    entry = AnnotationEntry(
        version=version,
        index=f"index/{version}.parquet",
        index_sha256=index_sha256,
        shards=[_shard_entry(annotation[pack.shard_key(number)]) for number in numbers],
        samples=len(all_rows),
        kept=len(kept),
        splits=dict(sorted(Counter(row.split for row in kept).items())),
        details={
            "engine": about["settings"]["engine"],
            "settings": about["settings"],
            "model": about["model"],
            "model_sha256": about["model_sha256"],
            "filters": asdict(filters),
        },
    )
    manifest = DatasetManifest(
        datasets=sorted({row.dataset for row in all_rows}),
        counts={
            "samples": len(all_rows),
            "kept": len(kept),
            "frames": sum(row.num_frames for row in all_rows),
            "frames_kept": sum(row.num_frames for row in kept),
        },
        licences=dict(sorted(Counter(row.licence for row in all_rows).items())),
        tool_versions=library_versions(*TOOLS),
        plan_hash=plan_hash(plan),
        media=[_shard_entry(media[pack.shard_key(number)]) for number in numbers],
        annotations=_in_order(storage, [*_other_versions(storage, version, len(plan)), entry]),
    )
    write_manifest(storage, manifest)
    return manifest


def _shard_entry(record: UnitRecord) -> ShardEntry:
    assert record.file and record.file_sha256
    return ShardEntry(
        name=record.file,
        sha256=record.file_sha256,
        size=record.file_bytes,
        samples=len(record.samples),
        frames=sum(sample.num_frames for sample in record.samples),
    )


def _other_versions(storage: Storage, version: str, num_shards: int) -> list[AnnotationEntry]:
    """Entries of the other versions that cover every shard; new shards leave an older version behind."""
    try:
        before = read_manifest(storage).annotations
    except FileNotFoundError:
        return []
    entries = []
    for entry in before:
        if len(entry.shards) < num_shards and entry.version != version:
            name = entry.version
            log.warning("annotation %s does not cover the new shards: make reannotate ANN=%s extends it", name, name)
        elif entry.version != version:
            entries.append(entry)
    return entries


def _in_order(storage: Storage, entries: list[AnnotationEntry]) -> list[AnnotationEntry]:
    """Versions in the order in which they were first made: the last is what readers open by default."""
    return sorted(entries, key=lambda entry: read_plan(storage, annotate.job_name(entry.version))["order"])


def current_version(storage: Storage) -> str | None:
    """The newest annotation version, None when there is no finished data set."""
    try:
        return read_manifest(storage).annotation().version
    except FileNotFoundError:
        return None


def filter_settings(storage: Storage, version: str, overrides: dict[str, Any]) -> FilterSettings:
    """Thresholds of a version: those in `DATASET.json`, else the defaults, with the user's overrides."""
    known: dict[str, Any] = {}
    if storage.exists("DATASET.json"):
        entries = {entry.version: entry for entry in read_manifest(storage).annotations}
        if version in entries:
            known = json.loads(json.dumps(entries[version].details["filters"]))
    return from_json(FilterSettings, known | overrides)
