"""Plans: the name under which each job commits, the units that belong to it now, and what became of them.

A plan lists the units of a job by key and provenance key, so that later jobs need nothing but DATA. A unit that was
done under another provenance key is not done: the plan decides which of several records of one key counts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestration.units.ledger import Ledger, quarantined
from orchestration.units.records import QuarantineRecord, SampleRecord, UnitRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json
from talkinghead.schema import media_shard_name

# These names are part of DATA: they stand in its paths and records, and never change.

# --- names ------------------------------------------------------------------------------------------------------------

INGEST_JOB = "ingest"
INGEST_PLAN_PREFIX = "ingest-"
ENCODE_PREFIX = "encode-"
PACK_PREFIX = "pack-"
PACK_MEDIA_JOB = f"{PACK_PREFIX}media"


def ingest_plan_name(dataset: str) -> str:
    """`ingest-<dataset>`: each data set of DATA has an ingest plan of its own."""
    return f"{INGEST_PLAN_PREFIX}{dataset}"


def annotate_job(version: str) -> str:
    """`annotate-<version>`: each annotation version has a ledger of its own."""
    return f"annotate-{version}"


def encode_job(version: str) -> str:
    """`encode-<version>`: each version of latents has a ledger of its own."""
    return f"{ENCODE_PREFIX}{version}"


def pack_annotation_job(version: str) -> str:
    """`pack-<version>`: each version of columns, annotation or latents, has a ledger of its own."""
    return f"{PACK_PREFIX}{version}"


def shard_key(shard: int) -> str:
    """Key of the unit that packs a shard, `clips-000042`; media and column shards have the same keys."""
    return media_shard_name(shard).removesuffix(".tar")


# --- plans ------------------------------------------------------------------------------------------------------------


def write_plan(
    storage: Storage, name: str, units: Sequence[Unit], extra: Mapping[str, str] | None = None, **about: Any
) -> None:
    """Record the units of a job; an equal plan is left alone.

    Args:
        storage: DATA, the data set's folder or bucket.
        name: Name of the plan.
        units: Units of the job.
        extra: Key → provenance key of more units, which can no longer be run but still count.
        about: Settings and other facts that the plan was made from; JSON values.
    """
    value = {"units": {unit.key: unit.pkey for unit in units} | dict(extra or {}), **about}
    write_json(storage, dataroot.plan(name), value)


def write_json(storage: Storage, path: str, value: Any) -> None:
    """Write a JSON file, unless it already has this content."""
    data = pretty_json(value)
    if not storage.exists(path) or storage.read(path) != data:
        storage.write(path, data)


def read_plan(storage: Storage, name: str) -> dict[str, Any]:
    """Content of a plan. Raises `FileNotFoundError`."""
    return json.loads(storage.read(dataroot.plan(name)))


def find_plan(storage: Storage, name: str) -> dict[str, Any] | None:
    """Content of a plan, None where nothing was planned under this name."""
    return read_plan(storage, name) if storage.exists(dataroot.plan(name)) else None


def plan_names(storage: Storage, prefix: str) -> list[str]:
    """Names of the plans that start with `prefix`, sorted."""
    names = [file.path.removeprefix("plans/").removesuffix(".json") for file in storage.list("plans", ".json")]
    return [name for name in names if name.startswith(prefix)]


def keep_packed(units: Iterable[Unit], before: Mapping[str, str], packed: set[str]) -> list[Unit]:
    """Units of the new plan, of which packed ones keep their provenance key: newer libraries do not redo them.

    Args:
        units: Units as the job would make them now.
        before: Key → provenance key, from the plan before.
        packed: Keys whose output is in a shard.
    """
    return [replace(unit, pkey=before.get(unit.key, unit.pkey)) if unit.key in packed else unit for unit in units]


# --- results ----------------------------------------------------------------------------------------------------------

UnitState = UnitRecord | QuarantineRecord | None
"""Outcome of one unit: its commit record, its quarantine record, or None while it has neither."""
Results = dict[str, UnitState]
"""Key → outcome of the unit."""


def ingest_results(storage: Storage) -> Results:
    """Outcome of the clips in every ingest plan."""
    # All data sets share one ledger, but each has a plan of its own.
    pairs: dict[str, str] = {}
    for name in plan_names(storage, INGEST_PLAN_PREFIX):
        pairs |= read_plan(storage, name)["units"]
    return Ledger(storage, INGEST_JOB).results(pairs.items())


def annotate_results(storage: Storage, version: str) -> Results:
    """Outcome of the samples in the plan of an annotation version; empty without a plan."""
    return _planned_results(storage, annotate_job(version))


def encode_results(storage: Storage, version: str) -> Results:
    """Outcome of the samples in the plan of a version of latents; empty without a plan."""
    return _planned_results(storage, encode_job(version))


def _planned_results(storage: Storage, job: str) -> Results:
    plan = find_plan(storage, job)
    return Ledger(storage, job).results(plan["units"].items()) if plan else {}


@dataclass(frozen=True, kw_only=True)
class IngestedSample:
    """A sample that ingest made."""

    record: UnitRecord
    """Commit record of the clip that it came from."""
    sample: SampleRecord
    """Its place in the output of that clip's unit."""


def ingested_samples(storage: Storage) -> dict[str, IngestedSample]:
    """Sample key → sample, for all samples of committed clips."""
    return {
        sample.key: IngestedSample(record=record, sample=sample)
        for record in ingest_results(storage).values()
        if isinstance(record, UnitRecord)
        for sample in record.samples
    }


def current_quarantine(storage: Storage) -> list[QuarantineRecord]:
    """Quarantine records of the units that are planned now; an input that was mended or removed is not listed."""
    # Job → (key, provenance key) of its planned units. All ingest plans belong to one job.
    planned: dict[str, set[tuple[str, str]]] = {}
    prefixes = (INGEST_PLAN_PREFIX, annotate_job(""), ENCODE_PREFIX)
    for name in itertools.chain.from_iterable(plan_names(storage, prefix) for prefix in prefixes):
        job = INGEST_JOB if name.startswith(INGEST_PLAN_PREFIX) else name
        planned.setdefault(job, set()).update(read_plan(storage, name)["units"].items())
    # Pack units have no plan of their own: a shard that failed stays listed.
    return [
        record
        for record in quarantined(storage)
        if record.job.startswith(PACK_PREFIX) or (record.key, record.pkey) in planned.get(record.job, ())
    ]


def pack_records(storage: Storage, job: str) -> dict[str, UnitRecord]:
    """Shard key → commit record, for every packed shard of a job. A shard is packed once, so its key is enough."""
    ledger = Ledger(storage, job)
    results = ledger.results(sorted(ledger.committed))
    return {key: record for key, record in results.items() if isinstance(record, UnitRecord)}


def packed_samples(storage: Storage) -> dict[str, tuple[str, SampleRecord]]:
    """Sample key → media shard and place in it, for every packed sample."""
    return {
        sample.key: (record.file, sample)
        for record in pack_records(storage, PACK_MEDIA_JOB).values()
        if record.file
        for sample in record.samples
    }


def packed_clips(storage: Storage) -> set[str]:
    """Keys of the clips that have a sample in a media shard."""
    ingested = ingested_samples(storage)
    return {ingested[key].record.key for key in packed_samples(storage) if key in ingested}
