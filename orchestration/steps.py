"""The steps of the data side, each over everything in DATA: ingest, annotate, pack.

A step plans its units from what stands in DATA, runs those that have no record, and leaves its plan behind.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate.engines import check_engine
from annotate.settings import AnnotateSettings
from ingest.settings import IngestSettings
from orchestration import state
from orchestration.cluster import Cluster
from orchestration.executor import RetrySettings, Tally, run_units
from orchestration.jobs import annotate, ingest, pack
from orchestration.jobs.plans import plan_names, read_plan, write_json, write_plan
from orchestration.records import QuarantineRecord, UnitRecord
from orchestration.unit import Output, Unit, store_output
from shards.plan import PlannedSample, plan_shards
from talkinghead import dataroot
from talkinghead.annotation import blank_arrays
from talkinghead.config import from_json
from talkinghead.provenance import pretty_json
from talkinghead.schema import CUT_SUFFIX, check_version
from talkinghead.storage import Storage

if TYPE_CHECKING:
    from talkinghead.face.model import FaceModel

log = logging.getLogger(__name__)

SHARD_PLAN = "shards"
BLANK = "blank"
"""Stands for the provenance key of an annotation that could not be made."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """DATA and how units run on it."""

    storage: Storage
    cluster: Cluster
    retry: RetrySettings

    def run(self, job: str, units: Sequence[Unit]) -> Tally:
        """Run what is pending and note the wall time of the run."""
        tally = run_units(self.storage, job, units, self.cluster, self.retry)
        if tally.committed or tally.quarantined:
            about = {
                "job": job,
                "units": tally.committed + tally.quarantined,
                "frames": sum(record.frames for record in tally.records),
                "wall_seconds": round(tally.wall_seconds, 3),
            }
            self.storage.create(f"runs/{time.time_ns()}-{job}.json", pretty_json(about))
        return tally


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which data set, and where its videos lie."""

    dataset: str = "folder"
    """hdtf, celebv-hq, vfhq or folder."""
    source: str | None = None
    """Folder with the videos. Without one, what DATA holds already is used."""
    metadata: str | None = None
    """Folder with the data set's own metadata (default: looked for in SOURCE)."""
    limit: int | None = None
    """Take only the first so many clips."""


def run_ingest(runner: Runner, source: Source, settings: IngestSettings, model: FaceModel) -> Tally:
    """Read the metadata, fingerprint the sources, cut and crop every clip."""
    from ingest.catalog import build_catalog, write_catalog
    from ingest.source_folder import fingerprint, read_fingerprints, write_fingerprints
    from orchestration.jobs.face import detector_sha256

    if source.source is None:
        raise ValueError("SOURCE is missing: the folder with the videos")
    storage, folder = runner.storage, Path(source.source)
    metadata = Path(source.metadata) if source.metadata else None
    outputs = [storage.local_root] if storage.local_root else []
    catalog = build_catalog(source.dataset, folder, metadata, source.limit, exclude=outputs)
    for problem in catalog.problems:
        log.warning("metadata: %s", problem)
    if not catalog.rows:
        raise ValueError(f"no clips: neither metadata nor media of {source.dataset} found in {source.source}")
    write_catalog(storage, catalog)
    paths = [row.source for row in catalog.rows if row.source is not None]
    known = read_fingerprints(storage, source.dataset)
    fingerprints = fingerprint(folder, paths, known)
    if fingerprints != known:
        write_fingerprints(storage, source.dataset, fingerprints)
    detector = detector_sha256(model)
    limit = runner.retry.time_limit_s
    units = ingest.plan_ingest(catalog.rows, fingerprints, str(folder.absolute()), settings, detector, limit)
    name = f"ingest-{source.dataset}"
    contents = {row.key: fingerprints[row.source].sha256 for row in catalog.rows if row.source is not None}
    units = _keep_packed(storage, name, units, contents)
    write_plan(storage, name, units, settings=asdict(settings), contents=contents)
    missing = len(catalog.rows) - len(units)
    log.info("%s: %d clips in the catalog, %d without a source file", source.dataset, len(catalog.rows), missing)
    return runner.run(ingest.JOB, units)


def _keep_packed(storage: Storage, name: str, units: Sequence[Unit], contents: dict[str, str | None]) -> list[Unit]:
    """Clips that are in a shard stay as they were ingested, also under newer libraries or settings.

    Raises:
        ValueError: The source of a packed clip has changed.
    """
    if name not in plan_names(storage, name):
        return list(units)
    before = read_plan(storage, name)
    packed = {
        s.key.split(CUT_SUFFIX)[0] for r in state.pack_records(storage, pack.MEDIA_JOB).values() for s in r.samples
    }
    kept, frozen = [], 0
    for unit in units:
        old = before["units"].get(unit.key, unit.pkey)
        if unit.key in packed and old != unit.pkey:
            if before["contents"].get(unit.key) != contents[unit.key]:
                raise ValueError(
                    f"{unit.source} has changed since its clip was packed. Shards are immutable: "
                    "give the new file another name, or use a new DATA folder"
                )
            unit, frozen = replace(unit, pkey=old), frozen + 1
        kept.append(unit)
    if frozen:
        log.warning("%d packed clips were ingested with other settings or libraries and stay as they are", frozen)
    return kept


def annotate_settings(storage: Storage, version: str, overrides: dict[str, Any]) -> AnnotateSettings:
    """Settings of a version: those it was planned with, else the defaults, with the user's overrides."""
    name = annotate.job_name(check_version(version))
    known = read_plan(storage, name)["settings"] if name in plan_names(storage, name) else {}
    return replace(from_json(AnnotateSettings, known), **overrides)


def run_annotate(runner: Runner, version: str, settings: AnnotateSettings, model: FaceModel) -> Tally:
    """Annotate every ingested sample."""
    storage = runner.storage
    ingested = state.ingested_samples(state.ingest_results(storage))
    samples = state.media_samples(storage, ingested)
    check_engine(settings.engine, model)
    units = annotate.plan_annotate(samples, version, settings, model, runner.retry.time_limit_s)
    _check_same_annotation(storage, version, units)
    about = {
        "settings": asdict(settings),
        "model": model.name,
        "model_sha256": model.sha256,
        "order": _order(storage, annotate.job_name(version)),
    }
    write_plan(storage, annotate.job_name(version), units, **about)
    return runner.run(annotate.job_name(version), units)


def _order(storage: Storage, name: str) -> int:
    """How many annotation versions were planned before this one."""
    names = plan_names(storage, "annotate-")
    return read_plan(storage, name)["order"] if name in names else len(names)


def _check_same_annotation(storage: Storage, version: str, units: Sequence[Unit]) -> None:
    """Packed annotations are immutable: other settings or another model need another version name."""
    name = annotate.job_name(version)
    if name not in plan_names(storage, name) or not storage.list(dataroot.records(pack.annotation_job(version))):
        return
    before = read_plan(storage, name)["units"]
    changed = [unit.key for unit in units if before.get(unit.key, unit.pkey) != unit.pkey]
    if changed:
        raise ValueError(
            f"{len(changed)} samples of annotation {version} are packed and would come out differently now "
            f"(other settings, model, libraries or media; first: {changed[0]}): run make reannotate ANN=<new version>"
        )


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How samples are dealt out to shards."""

    target_mib: int = 128
    """Size of a media shard."""
    min_shards: int = 1
    """At least so many shards (training wants 4 per reading worker), as far as there are samples."""
    seed: int = 0
    """Of the order in which samples are dealt out, and of the splits."""


def run_pack(runner: Runner, version: str, settings: ShardSettings) -> list[list[str]]:
    """Pack the media shards that are missing, then the version's annotation shards. Returns the keys by shard."""
    storage = runner.storage
    ingested = state.ingested_samples(state.ingest_results(storage))
    annotated = state.annotate_results(storage, version)
    if pending := [key for key, result in annotated.items() if result is None]:
        raise ValueError(f"{len(pending)} samples are not annotated yet (first: {pending[0]}): run make annotate first")
    plan = _shard_plan(storage, ingested, annotated, settings)
    limit = runner.retry.time_limit_s
    media = [pack.plan_pack(None, i, *_media_parts(keys, ingested), limit) for i, keys in enumerate(plan)]
    _check_immutable(storage, media)
    _stop_on_failure(storage, runner.run(pack.MEDIA_JOB, media), pack.MEDIA_JOB)
    job = pack.annotation_job(version)
    parts = [_annotation_parts(storage, version, keys, ingested, annotated) for keys in plan]
    units = [pack.plan_pack(version, i, *part, limit) for i, part in enumerate(parts)]
    _check_immutable(storage, units)
    _stop_on_failure(storage, runner.run(job, units), job)
    return plan


def _shard_plan(
    storage: Storage,
    ingested: dict[str, state.IngestedSample],
    annotated: state.Results,
    settings: ShardSettings,
) -> list[list[str]]:
    """Keys by shard. Packed shards stay; a planned one that is not packed loses what is gone; the new comes behind."""
    wanted = {key for key in ingested if isinstance(annotated.get(key), UnitRecord)}
    packed = {key for key, _ in state.Ledger(storage, pack.MEDIA_JOB).committed}
    existing: list[list[str]] = []
    if SHARD_PLAN in plan_names(storage, SHARD_PLAN):
        for number, keys in enumerate(read_plan(storage, SHARD_PLAN)["shards"]):
            frozen = pack.shard_key(number) in packed
            existing.append([key for key in keys if frozen or key in wanted])
    while existing and not existing[-1]:
        existing.pop()
    planned = {key for keys in existing for key in keys}
    sizes = {key: _media_bytes(ingested[key]) for key in wanted - planned}
    plan = plan_shards(
        sizes,
        target_bytes=settings.target_mib << 20,
        min_shards=settings.min_shards,
        seed=settings.seed,
        existing=existing,
    )
    write_json(storage, dataroot.plan(SHARD_PLAN), {"shards": plan, "settings": asdict(settings)})
    return plan


def _media_bytes(item: state.IngestedSample) -> int:
    return sum(member.size for member in item.sample.members)


def _media_parts(
    keys: Sequence[str], ingested: dict[str, state.IngestedSample]
) -> tuple[list[PlannedSample], list[str]]:
    samples, contents = [], []
    for key in keys:
        if key not in ingested:
            raise ValueError(
                f"{key} is packed, but its clip is no longer in any ingest plan: keep its source in SOURCE"
            )
        file, sample, sha256 = ingested[key].source
        samples.append(
            PlannedSample.of_members(key=key, file=file, members=sample.members, num_frames=sample.num_frames)
        )
        contents.append(sha256)
    return samples, contents


def _annotation_parts(
    storage: Storage,
    version: str,
    keys: Sequence[str],
    ingested: dict[str, state.IngestedSample],
    annotated: state.Results,
) -> tuple[list[PlannedSample], list[str]]:
    samples, contents = [], []
    for key in keys:
        record = annotated.get(key)
        if not isinstance(record, UnitRecord):
            record = _blank(storage, version, key, ingested[key].sample.num_frames, record)
        assert record.file and record.file_sha256
        sample = record.samples[0]
        samples.append(
            PlannedSample.of_members(key=key, file=record.file, members=sample.members, num_frames=sample.num_frames)
        )
        contents.append(record.file_sha256)
    return samples, contents


def _blank(storage: Storage, version: str, key: str, num_frames: int, failure: QuarantineRecord | None) -> UnitRecord:
    """A row of NaN for a packed sample that this version could not annotate: shards of all versions stay parallel."""
    from annotate.clip import encode_annotation

    job = annotate.job_name(version)
    plan = read_plan(storage, job)
    about = {
        "annotate_key": BLANK,
        "engine": plan["settings"]["engine"],
        "model": plan["model"],
        "model_sha256": plan["model_sha256"],
        "failed": failure.cause if failure else "not annotated",
    }
    contents = encode_annotation(blank_arrays(num_frames), about)
    unit = Unit(job=job, key=key, pkey=BLANK, function="", payload={}, source=key, time_limit_s=0.0)
    fields = store_output(storage, unit, Output(contents=[(key, num_frames, contents)]))
    return UnitRecord.from_json(json.dumps(fields).encode())


def _check_immutable(storage: Storage, units: Sequence[Unit]) -> None:
    """A packed shard never changes: refuse a plan that would pack one of them from other content."""
    if not units:
        return
    committed = dict(state.Ledger(storage, units[0].job).committed)
    changed = [unit for unit in units if committed.get(unit.key, unit.pkey) != unit.pkey]
    if changed:
        raise ValueError(
            f"{changed[0].source} was packed from other content than DATA holds now (source files, ingest settings or "
            "libraries changed). Shards are immutable: use a new DATA folder for the new content"
        )


def _stop_on_failure(storage: Storage, tally: Tally, job: str) -> None:
    if tally.quarantined:
        raise ValueError(
            f"{tally.quarantined} shards could not be packed; see make quarantine DATA={storage.uri}, "
            f"mend the cause, then make retry ({job})"
        )
