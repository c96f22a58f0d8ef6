"""Outcomes: what became of the planned units of each job, and which samples they gave.

A unit's outcome is its commit record, its quarantine record, or None while it has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ingest.source_listing import shortened
from orchestration import plans
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX, PACK_MEDIA_JOB, PACK_PREFIX, Plan
from orchestration.units.ledger import Ledger, quarantined
from orchestration.units.records import QuarantineRecord, SampleRecord, UnitRecord
from shards.index_format import MOST_NOTES
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.schema import KEY_PATTERN

UnitState = UnitRecord | QuarantineRecord | None
"""Outcome of one unit: its commit record, its quarantine record, or None while it has neither."""
Results = dict[str, UnitState]
"""Key → outcome of the unit."""
NOTES = "notes"
"""Detail of ingest's commit records: key of a sample or rejected piece → its notes. Pieces without notes, and clips
without such pieces, are not in it."""

# --- ingest -----------------------------------------------------------------------------------------------------------


def ingest_results(storage: Storage) -> Results:
    """Outcome of the clips in every ingest plan.

    Raises:
        ValueError: A plan or a record is none of ours.
    """
    # All data sets share one ledger, but each has a plan of its own.
    planned: dict[str, str] = {}
    for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
        planned |= _planned(storage, name)
    results = Ledger(storage, INGEST_JOB).results(planned.items())
    for record in results.values():
        # What the index says of every sample.
        if isinstance(record, UnitRecord) and record.samples:
            _check_file(storage, record)
            _check_details(storage, record, dataset=_is_text, split_group=_is_text, licence=_is_text)
            _check_details(storage, record, person=lambda value: value is None or _is_text(value))
        if isinstance(record, UnitRecord):
            _check_details(storage, record, notes=lambda value: value is None or _are_notes(value))
    return results


def clip_notes(record: UnitRecord, key: str) -> list[str]:
    """Notes on a piece of a clip, also on one that ingest rejected: what is unusual about its source, a line each.

    Args:
        record: Commit record of the clip's ingest; earlier releases did not put notes into it.
        key: Key of the piece.
    """
    # They quote names of files and metadata, which may be a stranger's.
    lines = ((record.details.get(NOTES) or {}).get(key) or [])[:MOST_NOTES]
    return [shortened(line) for line in lines if line]


@dataclass(frozen=True, kw_only=True)
class IngestedSample:
    """A sample that ingest made."""

    record: UnitRecord
    """Commit record of the clip that it came from."""
    sample: SampleRecord
    """Its place in the output of that clip's unit."""

    @property
    def notes(self) -> list[str]:
        """What is unusual about its source, a line each."""
        return clip_notes(self.record, self.sample.key)


def ingested_samples(storage: Storage) -> dict[str, IngestedSample]:
    """Sample key → sample, for all samples of committed clips."""
    return {
        sample.key: IngestedSample(record=record, sample=sample)
        for record in ingest_results(storage).values()
        if isinstance(record, UnitRecord)
        for sample in record.samples
    }


# --- annotations and derived columns ----------------------------------------------------------------------------------


def annotate_results(storage: Storage, version: str) -> Results:
    """Outcome of the samples in the plan of an annotation version; empty without a plan."""
    return _column_results(storage, plans.annotate_job(version))


def derive_results(storage: Storage, column: str, version: str) -> Results:
    """Outcome of the samples in the plan of a version of a derived column; empty without a plan."""
    return _column_results(storage, plans.column_job(column, version))


def _column_results(storage: Storage, job: str) -> Results:
    results = Ledger(storage, job).results(_planned(storage, job).items())
    for key, record in results.items():
        # These jobs make one sample of each: its columns.
        if isinstance(record, UnitRecord):
            _check_file(storage, record)
            if [sample.key for sample in record.samples] != [key]:
                raise _no_record(storage, record, f"its sample is not {key} alone")
    return results


def fit_records(storage: Storage, job: str) -> dict[str, UnitRecord]:
    """Part → commit record, for the parts of a global fit that are done."""
    results = _column_results(storage, job)
    return {key: record for key, record in results.items() if isinstance(record, UnitRecord)}


# --- shards -----------------------------------------------------------------------------------------------------------


def pack_records(storage: Storage, job: str) -> dict[str, UnitRecord]:
    """Shard key → commit record, for every packed shard of a job. A shard is packed once, so its key is enough."""
    ledger = Ledger(storage, job)
    results = ledger.results(sorted(ledger.committed))
    records = {key: record for key, record in results.items() if isinstance(record, UnitRecord)}
    for record in records.values():
        _check_file(storage, record)
        _check_details(storage, record, blank=lambda value: value is None or _are_keys(value))
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


# --- all jobs ---------------------------------------------------------------------------------------------------------


def current_quarantine(storage: Storage) -> list[QuarantineRecord]:
    """Quarantine records of the units that are planned now; an input that was mended or removed is not listed."""
    # Job → (key, provenance key) of its planned units. All ingest plans belong to one job.
    planned: dict[str, set[tuple[str, str]]] = {}
    prefixes = (INGEST_PLAN_PREFIX, plans.ANNOTATE_PREFIX, plans.FIT_PREFIX, *plans.COLUMN_PREFIXES)
    for name in plans.plan_names(storage, *prefixes):
        job = INGEST_JOB if name.startswith(INGEST_PLAN_PREFIX) else name
        planned.setdefault(job, set()).update(_planned(storage, name).items())
    # Pack units have no plan of their own: a shard that failed stays listed.
    return [
        record
        for record in quarantined(storage)
        if record.job.startswith(PACK_PREFIX) or (record.key, record.pkey) in planned.get(record.job, ())
    ]


def _planned(storage: Storage, name: str) -> dict[str, str]:
    """Key → provenance key of the units of a plan; empty without one."""
    plan: Plan | None = plans.find_plan(storage, name)
    return plan.units if plan else {}


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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_notes(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(lines, list) for lines in value.values()):
        return False
    return all(isinstance(line, str) for lines in value.values() for line in lines)


def _are_keys(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(key, str) and KEY_PATTERN.fullmatch(key) for key in value)
