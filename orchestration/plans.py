"""Plans: the name under which each job commits, the units that belong to it now, and what became of them.

A plan lists the units of a job by key and provenance key, so that later jobs need nothing but DATA. A unit that was
done under another provenance key is not done: the plan decides which of several records of one key counts.

Plans may be a stranger's, like all of DATA: they hold names, numbers and settings, and never say which code is to run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestration.units.ledger import Ledger, quarantined
from orchestration.units.records import QuarantineRecord, SampleRecord, UnitRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.derived import NETWORKS
from talkinghead.files.foreign import parse_json, refuse_large
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json
from talkinghead.schema import KEY_PATTERN, media_shard_name

PLAN_BYTES = 256 << 20
"""Largest plan that is written or read: that of a million clips."""

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
    """Write a JSON file, unless it already has this content.

    Raises:
        ValueError: It would be too large to be read again.
    """
    data = pretty_json(value)
    refuse_large(storage.describe(path), len(data), PLAN_BYTES, "plan (make several DATA of the clips)")
    if not storage.exists(path) or storage.read(path) != data:
        storage.write(path, data)


def read_plan(storage: Storage, name: str) -> dict[str, Any]:
    """Content of a plan.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is no plan.
    """
    path = dataroot.plan(name)
    file = storage.describe(path)
    plan = parse_json(storage.read(path, PLAN_BYTES, "plan"), file)
    if fault := _fault(name, plan):
        raise ValueError(f"{file} is no plan of ours: {fault}")
    return plan


def _fault(name: str, plan: Any) -> str | None:
    """What is wrong with the content of a plan; None: nothing that could make a reader fail."""
    if not isinstance(plan, dict):
        return "it is no object"
    # What each kind of plan is read for. Settings are checked where they become settings.
    kinds: dict[str, Callable[[Any], bool]] = {"settings": _is_object}
    if name.startswith(INGEST_PLAN_PREFIX):
        kinds |= {"units": _names_keys, "contents": _names_contents}
    elif name.startswith(annotate_job("")):
        kinds = {"settings": _names_engine, "model": _is_text, "model_sha256": _is_text}
        kinds |= {"units": _names_keys, "order": _is_count}
    elif name.startswith(ENCODE_PREFIX):
        kinds = {"units": _names_keys, "width": _is_count, "height": _is_count}
        kinds |= dict.fromkeys(NETWORKS, _has_hash)
    else:
        kinds |= {"shards": _is_shards}
    wrong = [field for field, fits in kinds.items() if not fits(plan.get(field))]
    return f"its {wrong[0]} is missing or wrong" if wrong else None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _names_engine(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("engine"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and KEY_PATTERN.fullmatch(value) is not None


def _names_keys(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_key(key) and _is_key(pkey) for key, pkey in value.items())


def _names_contents(value: Any) -> bool:
    return isinstance(value, dict) and all(content is None or _is_text(content) for content in value.values())


def _has_hash(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("sha256"))


def _is_shards(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(keys, list) and all(map(_is_key, keys)) for keys in value)


def find_plan(storage: Storage, name: str) -> dict[str, Any] | None:
    """Content of a plan, None where nothing was planned under this name."""
    return read_plan(storage, name) if storage.exists(dataroot.plan(name)) else None


def plan_names(storage: Storage, prefix: str) -> list[str]:
    """Names of the plans that start with `prefix`, sorted."""
    names = [file.path.removeprefix("plans/").removesuffix(".json") for file in storage.list("plans", ".json")]
    return [name for name in names if name.startswith(prefix) and KEY_PATTERN.fullmatch(name)]


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
    """Outcome of the clips in every ingest plan.

    Raises:
        ValueError: A plan or a record is none of ours.
    """
    # All data sets share one ledger, but each has a plan of its own.
    pairs: dict[str, str] = {}
    for name in plan_names(storage, INGEST_PLAN_PREFIX):
        pairs |= read_plan(storage, name)["units"]
    results = Ledger(storage, INGEST_JOB).results(pairs.items())
    for record in results.values():
        # What the index says of every sample.
        if isinstance(record, UnitRecord) and record.samples:
            _check_file(storage, record)
            _check_details(storage, record, dataset=_is_text, split_group=_is_text, licence=_is_text)
            _check_details(storage, record, person=lambda value: value is None or _is_text(value))
    return results


def _check_file(storage: Storage, record: UnitRecord) -> None:
    """Raise `ValueError` unless a commit record names the file with its samples."""
    if not (record.file and record.file_sha256):
        raise _no_record(storage, record, "it names no file")


def _check_details(storage: Storage, record: UnitRecord, **kinds: Callable[[Any], bool]) -> None:
    """Raise `ValueError` unless the details of a commit record have certain fields."""
    for name, fits in kinds.items():
        if not fits(record.details.get(name)):
            raise _no_record(storage, record, f"the {name} of its details is missing or wrong")


def _no_record(storage: Storage, record: UnitRecord, why: str) -> ValueError:
    file = storage.describe(dataroot.record(record.job, record.key, record.pkey))
    return ValueError(f"{file} is no record of ours: {why}")


def annotate_results(storage: Storage, version: str) -> Results:
    """Outcome of the samples in the plan of an annotation version; empty without a plan."""
    return _planned_results(storage, annotate_job(version))


def encode_results(storage: Storage, version: str) -> Results:
    """Outcome of the samples in the plan of a version of latents; empty without a plan."""
    return _planned_results(storage, encode_job(version))


def _planned_results(storage: Storage, job: str) -> Results:
    plan = find_plan(storage, job)
    results = Ledger(storage, job).results(plan["units"].items()) if plan else {}
    for key, record in results.items():
        # These jobs make one sample of each: its columns.
        if isinstance(record, UnitRecord):
            _check_file(storage, record)
            if [sample.key for sample in record.samples] != [key]:
                raise _no_record(storage, record, f"its sample is not {key} alone")
    return results


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
    records = {key: record for key, record in results.items() if isinstance(record, UnitRecord)}
    for record in records.values():
        _check_file(storage, record)
        _check_details(storage, record, blank=lambda value: value is None or _is_shards([value]))
    return records


def blank_rows(record: UnitRecord) -> list[str]:
    """Keys of the samples of a packed shard that have no columns, but rows of NaN."""
    return record.details.get("blank") or []  # the first release did not note them


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
