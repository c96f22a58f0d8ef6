"""Pack as units: one per shard, media and annotation apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestration import results
from orchestration.job_names import PACK_MEDIA_JOB, annotate_job, pack_annotation_job, shard_key
from orchestration.overrides import settings_with
from orchestration.plans import plan_names, read_plan, write_json
from orchestration.units.ledger import Ledger
from orchestration.units.records import QuarantineRecord, SampleRecord, UnitRecord
from orchestration.units.runner import Runner
from orchestration.units.unit import Output, Unit, store_output
from shards.manifest import read_manifest
from shards.plan import PlannedSample, plan_shards
from shards.splits import check_fractions
from talkinghead import dataroot
from talkinghead.annotation import blank_arrays
from talkinghead.files.storage import Storage
from talkinghead.provenance import provenance_key
from talkinghead.schema import Member, annotation_shard_name, media_shard_name

VERSION = 1
_TIME_LIMIT_S = 3600.0


def plan_pack(
    version: str | None,
    shard: int,
    samples: Sequence[PlannedSample],
    contents: Sequence[str],
    time_limit_s: float | None,
    blank: Sequence[str] = (),
) -> Unit:
    """The unit that packs one shard.

    Args:
        version: Annotation version; None for the media shard.
        shard: Number of the shard.
        samples: What goes in, in order.
        contents: Per sample, the sha256 of the file that it is copied from.
        time_limit_s: Wall-clock limit.
        blank: Keys of the samples whose annotation failed; noted on the record.
    """
    inputs = [[sample.key, content] for sample, content in zip(samples, contents, strict=True)]
    name = annotation_shard_name(version, shard) if version else media_shard_name(shard)
    return Unit(
        job=pack_annotation_job(version) if version else PACK_MEDIA_JOB,
        key=shard_key(shard),
        pkey=provenance_key("pack", VERSION, parameters={"version": version, "shard": shard}, inputs=inputs),
        function="orchestration.jobs.pack:run",
        payload={"name": name, "samples": [asdict(sample) for sample in samples], "blank": list(blank)},
        source=name,
        time_limit_s=time_limit_s or _TIME_LIMIT_S,
    )


def run(storage: Storage, unit: Unit) -> Output:
    """Copy the samples of one shard into its tar."""
    from shards.pack import pack_shard

    samples = [
        PlannedSample(**{**sample, "members": tuple(Member(**member) for member in sample["members"])})
        for sample in unit.payload["samples"]
    ]
    with storage.staged(unit.payload["name"]) as sink:
        packed = pack_shard(storage, samples, sink)
    record = UnitRecord(
        job=unit.job,
        key=unit.key,
        pkey=unit.pkey,
        samples=[
            SampleRecord(key=done.key, num_frames=done.num_frames, members=done.members, sha256=sample.sha256 or "")
            for done, sample in zip(packed.samples, samples, strict=True)
        ],
        file=unit.payload["name"],
        file_bytes=packed.size,
        file_sha256=packed.sha256,
        frames=packed.num_frames,
    )
    return Output(stored=record, details={"blank": unit.payload["blank"]})


SHARD_PLAN = "shards"


BLANK = "blank"
"""Stands for the provenance key of an annotation that could not be made."""


Ingested = Mapping[str, results.IngestedSample]


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How samples are dealt out to shards and splits."""

    target_mib: int = 128
    """Size of a media shard."""
    min_shards: int = 1
    """At least so many shards (training wants 4 per reading worker), as far as there are samples."""
    seed: int = 0
    """Of the order in which samples are dealt out, and of the splits."""
    val_fraction: float = 0.05
    """Expected share of the split groups (persons, source videos) in the validation split."""
    test_fraction: float = 0.05
    """The same of the test split."""

    @property
    def fractions(self) -> dict[str, float]:
        """Share of each split."""
        train = 1.0 - self.val_fraction - self.test_fraction
        return {"train": train, "val": self.val_fraction, "test": self.test_fraction}

    def __post_init__(self) -> None:
        if self.target_mib < 1 or self.min_shards < 1:
            raise ValueError(f"target_mib ({self.target_mib}) and min_shards ({self.min_shards}) must be at least 1")
        check_fractions(self.fractions)


def run_pack(runner: Runner, version: str, overrides: Sequence[str] = ()) -> None:
    """Pack the media shards that are missing, then the version's annotation shards.

    Args:
        runner: DATA.
        version: Annotation version.
        overrides: `ShardSettings` as NAME=VALUE; the others stay as the shards were planned before.

    Raises:
        ValueError: Samples that are not annotated yet, content that changed under a packed shard, or a shard that
            cannot be packed.
        RunError: The machine is at fault.
    """
    storage, limit = runner.storage, runner.retry.time_limit_s
    ingested = results.ingested_samples(results.ingest_results(storage))
    annotated = results.annotate_results(storage, version)
    if pending := [key for key, result in annotated.items() if result is None]:
        raise ValueError(f"{len(pending)} samples are not annotated yet (first: {pending[0]}): run make annotate first")
    settings = shard_settings(storage, overrides)
    _check_splits(storage, settings)
    plan = _shard_plan(storage, ingested, annotated, settings)
    media = [plan_pack(None, i, *_media_parts(keys, ingested), limit) for i, keys in enumerate(plan)]
    _check_immutable(storage, media)
    pack_units(runner, PACK_MEDIA_JOB, media)
    job = pack_annotation_job(version)
    done = {key for key, _ in Ledger(storage, job).committed}
    missing = [(i, keys) for i, keys in enumerate(plan) if shard_key(i) not in done]
    parts = [(i, _annotation_parts(storage, version, keys, ingested, annotated)) for i, keys in missing]
    units = [plan_pack(version, i, samples, contents, limit, blank) for i, (samples, contents, blank) in parts]
    pack_units(runner, job, units)


def shard_settings(storage: Storage, overrides: Sequence[str] = ()) -> ShardSettings:
    """Settings of the shards that are planned, else the defaults, with the user's overrides."""
    known = read_plan(storage, SHARD_PLAN)["settings"] if SHARD_PLAN in plan_names(storage, SHARD_PLAN) else {}
    return settings_with(ShardSettings, known, overrides)


def _check_splits(storage: Storage, settings: ShardSettings) -> None:
    """All annotation versions have the same splits: nothing may be trained on in one and tested in another."""
    before = shard_settings(storage)
    changed = (settings.seed, settings.fractions) != (before.seed, before.fractions)
    if changed and storage.exists(dataroot.DATASET_JSON) and len(read_manifest(storage).annotations) > 1:
        raise ValueError(
            "DATA holds several annotation versions, whose splits must agree: seed and fractions stay as they are"
        )


def _shard_plan(
    storage: Storage, ingested: Ingested, annotated: results.Results, settings: ShardSettings
) -> list[list[str]]:
    """Keys by shard. Packed shards stay; a planned one that is not packed loses what is gone; the new comes behind."""
    wanted = {key for key in ingested if isinstance(annotated.get(key), UnitRecord)}
    packed = {key for key, _ in Ledger(storage, PACK_MEDIA_JOB).committed}
    existing: list[list[str]] = []
    if SHARD_PLAN in plan_names(storage, SHARD_PLAN):
        for number, keys in enumerate(read_plan(storage, SHARD_PLAN)["shards"]):
            frozen = shard_key(number) in packed
            existing.append([key for key in keys if frozen or key in wanted])
    while existing and not existing[-1]:
        existing.pop()
    planned = {key for keys in existing for key in keys}
    plan = plan_shards(
        {key: sum(member.size for member in ingested[key].sample.members) for key in wanted - planned},
        target_bytes=settings.target_mib << 20,
        min_shards=settings.min_shards,
        seed=settings.seed,
        existing=existing,
    )
    write_json(storage, dataroot.plan(SHARD_PLAN), {"shards": plan, "settings": asdict(settings)})
    return plan


def _planned(file: str, sample: SampleRecord) -> PlannedSample:
    return PlannedSample.of_members(
        key=sample.key, file=file, members=sample.members, num_frames=sample.num_frames, sha256=sample.sha256
    )


def _media_parts(keys: Sequence[str], ingested: Ingested) -> tuple[list[PlannedSample], list[str]]:
    samples, contents = [], []
    for key in keys:
        record = ingested[key].record
        assert record.file and record.file_sha256
        samples.append(_planned(record.file, ingested[key].sample))
        contents.append(record.file_sha256)
    return samples, contents


def _annotation_parts(
    storage: Storage, version: str, keys: Sequence[str], ingested: Ingested, annotated: results.Results
) -> tuple[list[PlannedSample], list[str], list[str]]:
    """Samples, their contents' hashes, and the keys that could not be annotated."""
    samples, contents, blank = [], [], []
    for key in keys:
        record = annotated.get(key)
        if not isinstance(record, UnitRecord):
            record = _blank(storage, version, key, ingested[key].sample.num_frames, record)
            blank.append(key)
        assert record.file and record.file_sha256
        samples.append(_planned(record.file, record.samples[0]))
        contents.append(record.file_sha256)
    return samples, contents, blank


def _blank(storage: Storage, version: str, key: str, num_frames: int, failure: QuarantineRecord | None) -> UnitRecord:
    """A row of NaN for a packed sample that this version could not annotate: shards of all versions stay parallel."""
    from annotate.clip import encode_annotation

    job = annotate_job(version)
    plan = read_plan(storage, job)
    about: dict[str, Any] = {
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
    committed = dict(Ledger(storage, PACK_MEDIA_JOB).committed)
    changed = [unit for unit in units if committed.get(unit.key, unit.pkey) != unit.pkey]
    if changed:
        raise ValueError(
            f"{changed[0].source} was packed from other content than DATA holds now. Shards are immutable: "
            "use a new DATA folder for the new content"
        )


def pack_units(runner: Runner, job: str, units: Sequence[Unit]) -> None:
    """Pack; a data set with a shard missing is none, whether it failed now or in an earlier run."""
    runner.run(job, units)
    committed = Ledger(runner.storage, job).committed
    if lacking := [unit for unit in units if (unit.key, unit.pkey) not in committed]:
        raise ValueError(
            f"{len(lacking)} shards could not be packed (first: {lacking[0].source}); "
            f"see make quarantine DATA={runner.storage.uri}, mend the cause, then make retry"
        )
