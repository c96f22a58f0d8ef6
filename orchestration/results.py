"""What the jobs have made of DATA so far, read from their plans and records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from orchestration.job_names import (
    ENCODE_PREFIX,
    INGEST_JOB,
    INGEST_PLAN_PREFIX,
    PACK_MEDIA_JOB,
    PACK_PREFIX,
    annotate_job,
    encode_job,
)
from orchestration.plans import plan_names, read_plan
from orchestration.units.ledger import Ledger, quarantined
from orchestration.units.records import QuarantineRecord, SampleRecord, UnitRecord
from talkinghead.files.storage import Storage

Results = dict[str, UnitRecord | QuarantineRecord | None]
"""Key → commit record, quarantine record, or None while the unit is pending."""


def ingest_results(storage: Storage) -> Results:
    """Of the clips in every ingest plan."""
    pairs: dict[str, str] = {}
    for name in plan_names(storage, INGEST_PLAN_PREFIX):
        pairs |= read_plan(storage, name)["units"]
    return Ledger(storage, INGEST_JOB).results(pairs.items())


def annotate_results(storage: Storage, version: str) -> Results:
    """Of the samples in the version's plan; empty without a plan."""
    name = annotate_job(version)
    if name not in plan_names(storage, name):
        return {}
    return Ledger(storage, name).results(read_plan(storage, name)["units"].items())


def encode_results(storage: Storage, version: str) -> Results:
    """Of the samples in the plan of a version of latents; empty without a plan."""
    name = encode_job(version)
    if name not in plan_names(storage, name):
        return {}
    return Ledger(storage, name).results(read_plan(storage, name)["units"].items())


@dataclass(frozen=True, kw_only=True)
class IngestedSample:
    """A sample of ingest, with the record of the clip that it came from."""

    record: UnitRecord
    sample: SampleRecord


def ingested_samples(results: Mapping[str, UnitRecord | QuarantineRecord | None]) -> dict[str, IngestedSample]:
    """Sample key → sample, of every committed clip."""
    return {
        sample.key: IngestedSample(record=record, sample=sample)
        for record in results.values()
        if isinstance(record, UnitRecord)
        for sample in record.samples
    }


def current_quarantine(storage: Storage) -> list[QuarantineRecord]:
    """What is in quarantine of the units that are planned now; an input that was mended or removed is not listed."""
    planned: dict[str, set[tuple[str, str]]] = {}
    prefixes = (INGEST_PLAN_PREFIX, annotate_job(""), ENCODE_PREFIX)
    for name in itertools.chain.from_iterable(plan_names(storage, prefix) for prefix in prefixes):
        job = INGEST_JOB if name.startswith(INGEST_PLAN_PREFIX) else name
        planned.setdefault(job, set()).update(read_plan(storage, name)["units"].items())
    return [
        record
        for record in quarantined(storage)
        if record.job.startswith(PACK_PREFIX) or (record.key, record.pkey) in planned.get(record.job, ())
    ]


def pack_records(storage: Storage, job: str) -> dict[str, UnitRecord]:
    """Shard key → record, of every packed shard of a job (a shard is packed once and stays)."""
    ledger = Ledger(storage, job)
    results = ledger.results(sorted(ledger.committed))
    return {key: record for key, record in results.items() if isinstance(record, UnitRecord)}


def packed_samples(storage: Storage) -> dict[str, tuple[str, SampleRecord]]:
    """Sample key → media shard and place in it, of every packed sample."""
    return {
        sample.key: (record.file, sample)
        for record in pack_records(storage, PACK_MEDIA_JOB).values()
        if record.file
        for sample in record.samples
    }


def packed_clips(storage: Storage) -> set[str]:
    """Keys of the clips that have a sample in a media shard."""
    ingested = ingested_samples(ingest_results(storage))
    return {ingested[key].record.key for key in packed_samples(storage) if key in ingested}
