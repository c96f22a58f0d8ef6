"""Outcomes: what became of the planned units of each job, and which samples they gave.

A unit's outcome is its commit record, its quarantine record, or None while it has neither.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from talkinghead.schema import CUT_SUFFIX, KEY_PATTERN

UnitState = UnitRecord | QuarantineRecord | None
"""Outcome of one unit: its commit record, its quarantine record, or None while it has neither."""
Results = dict[str, UnitState]
"""Key → outcome of the unit."""
Unreadable = dict[str, str]
"""Path of a record that cannot be read → what is wrong with it. Its unit counts as pending."""
NOTES = "notes"
"""Detail of ingest's commit records: key of a sample or rejected piece → its notes. Pieces without notes, and clips
without such pieces, are not in it."""
EPOCH = "epoch"
"""Detail of pack records: epoch of the lease under which it was written; those of older releases have none."""

_CUT = re.compile(rf"{CUT_SUFFIX}\d+$")  # of the keys of a clip's pieces (`cut_key`)

# --- ingest -----------------------------------------------------------------------------------------------------------


def ingest_results(storage: Storage, unreadable: Unreadable | None = None) -> Results:
    """Outcome of the clips in every ingest plan.

    Args:
        storage: DATA, the data set's folder or bucket.
        unreadable: Gets the records that cannot be read.

    Raises:
        ValueError: A plan or a record is none of ours.
    """
    # All data sets share one ledger, but each has a plan of its own.
    planned: dict[str, str] = {}
    for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
        planned |= _planned(storage, name)
    results = _results(storage, INGEST_JOB, planned, unreadable)
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


def ingested_samples(
    storage: Storage, unreadable: Unreadable | None = None, results: Results | None = None
) -> dict[str, IngestedSample]:
    """Sample key → sample, for all samples of committed clips. As `ingest_results`, which may be given as `results`:
    records are many small files."""
    results = ingest_results(storage, unreadable) if results is None else results
    return {
        sample.key: IngestedSample(record=record, sample=sample)
        for record in results.values()
        if isinstance(record, UnitRecord)
        for sample in record.samples
    }


def why_none(storage: Storage) -> str:
    """What became of the clips of a DATA that has no sample, and what to do, in words."""
    reasons: Counter[str] = Counter()
    for result in ingest_results(storage).values():
        if isinstance(result, QuarantineRecord):
            reasons[f"failed ({result.cause})"] += 1
        elif isinstance(result, UnitRecord):
            reasons[f"rejected ({result.rejected[0].rejection.reason if result.rejected else 'no reason'})"] += 1
        else:
            reasons["not ingested yet"] += 1
    if not reasons:
        return "no clip has its video in SOURCE: name the folder with the videos, or get them with make download"
    found = ", ".join(f"{number} {shortened(reason)}" for reason, number in reasons.most_common(3))
    return f"{reasons.total()} clips: {found}; make quarantine lists what failed. Give other videos with SOURCE"


def ingest_again(storage: Storage, what: str) -> str:
    """The command that ingests a clip again.

    Args:
        storage: DATA, the data set's folder or bucket.
        what: Key of one of its samples, or path of its record.
    """
    keys = dataroot.keys_of_record(what)
    names = {keys[0]} if keys else {what, _CUT.sub("", what)}
    datasets = [
        name.removeprefix(INGEST_PLAN_PREFIX)
        for name in plans.plan_names(storage, INGEST_PLAN_PREFIX)
        if not names.isdisjoint(_planned(storage, name))
    ]
    return f"make shards DATASET={datasets[0] if datasets else '<its>'} SOURCE=<its folder> DATA={storage.uri}"


# --- annotations and derived columns ----------------------------------------------------------------------------------


def annotate_results(storage: Storage, version: str, unreadable: Unreadable | None = None) -> Results:
    """Outcome of the samples in the plan of an annotation version; empty without a plan. As `ingest_results`."""
    return _column_results(storage, plans.annotate_job(version), unreadable)


def derive_results(storage: Storage, column: str, version: str, unreadable: Unreadable | None = None) -> Results:
    """Outcome of the samples in the plan of a derived column's version; empty without a plan. As `ingest_results`."""
    return _column_results(storage, plans.column_job(column, version), unreadable)


def _column_results(storage: Storage, job: str, unreadable: Unreadable | None = None) -> Results:
    results = _results(storage, job, _planned(storage, job), unreadable)
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


def pack_records(storage: Storage, job: str, unreadable: Unreadable | None = None) -> dict[str, UnitRecord]:
    """Shard key → commit record, for every packed shard of a job. A shard is packed once, so its key is enough.

    A command that was taken over in the moment of its commit may have left a second record: the newer epoch's counts.
    """
    ledger = Ledger(storage, job)
    commits = ledger.commits()
    if unreadable is not None:
        unreadable.update(ledger.unreadable)
    for record in commits:
        _check_details(storage, record, **{EPOCH: lambda value: value is None or type(value) is int})
    records = {record.key: record for record in sorted(commits, key=lambda record: record.details.get(EPOCH) or 0)}
    for record in records.values():
        _check_file(storage, record)
        _check_details(storage, record, blank=lambda value: value is None or _are_keys(value))
        _check_details(storage, record, removed=lambda value: value is None or (type(value) is int and value >= 0))
    return records


def blank_rows(record: UnitRecord) -> list[str]:
    """Keys of the samples of a packed shard that have no columns, but rows of NaN."""
    return record.details.get("blank") or []  # the first release did not note them


def lost_shards(storage: Storage, records: Iterable[UnitRecord]) -> set[str]:
    """Names of packed shards whose files are gone."""
    names = sorted({record.file for record in records if record.file})
    with ThreadPoolExecutor(16) as pool:
        return {name for name, there in zip(names, pool.map(storage.exists, names), strict=True) if not there}


def check_shards(storage: Storage, names: Iterable[str]) -> None:
    """Raise `ValueError` unless all these media shards are there."""
    wanted = sorted(set(names))
    with ThreadPoolExecutor(16) as pool:
        gone = [name for name, there in zip(wanted, pool.map(storage.exists, wanted), strict=True) if not there]
    if gone:
        more = f" and {len(gone) - 1} more media shards are" if gone[1:] else " is"
        raise ValueError(f"{storage.describe(gone[0])}{more} gone: make shards DATA={storage.uri} packs them again")


def packed_samples(
    storage: Storage, records: Mapping[str, UnitRecord] | None = None
) -> dict[str, tuple[str, SampleRecord]]:
    """Sample key → media shard and place in it, for every packed sample; the shard may be gone.

    Args:
        storage: DATA, the data set's folder or bucket.
        records: Records of the media shards; None: they are read.
    """
    records = pack_records(storage, PACK_MEDIA_JOB) if records is None else records
    return {
        sample.key: (record.file, sample) for record in records.values() if record.file for sample in record.samples
    }


def packed_clips(storage: Storage, results: Results | None = None) -> plans.PackedUnits:
    """Clips that have samples in media shards.

    Args:
        storage: DATA, the data set's folder or bucket.
        results: Outcome of the clips; None: it is read.
    """
    records = pack_records(storage, PACK_MEDIA_JOB)
    packed = packed_samples(storage, records)
    lost = lost_shards(storage, records.values())
    there = {key for key, (file, _) in packed.items() if file not in lost}
    keys, kept = set(), set()
    known = set()
    for key, item in ingested_samples(storage, results=results).items():
        known.add(key)
        if key in packed:
            keys.add(item.record.key)
        if key not in there:
            kept.add(item.record.key)
    # Of clips whose records cannot be read, the names of the samples tell which they are.
    unknown = {_CUT.sub("", key) for key in packed.keys() - known} | (packed.keys() - known)
    keys |= unknown & {key for name in plans.plan_names(storage, INGEST_PLAN_PREFIX) for key in _planned(storage, name)}
    return plans.PackedUnits(keys=keys, freed=keys - kept - unknown)


def packed_columns(storage: Storage, version: str) -> plans.PackedUnits:
    """Samples whose columns are in the shards of a version (rows of NaN for failed ones are not)."""
    records = pack_records(storage, plans.pack_annotation_job(version)).values()
    lost = lost_shards(storage, records)
    keys, freed = set(), set()
    for record in records:
        blank = set(blank_rows(record))
        made = {sample.key for sample in record.samples if sample.key not in blank}
        keys |= made
        if record.file not in lost:
            freed |= made
    return plans.PackedUnits(keys=keys, freed=freed)


def check_media(
    storage: Storage, keys: Iterable[str], ingested: Mapping[str, IngestedSample], records: Mapping[str, UnitRecord]
) -> None:
    """Raise `ValueError` unless the media of all these samples are there, in a shard or in the file of their clip.

    Args:
        storage: DATA, the data set's folder or bucket.
        keys: Keys of samples.
        ingested: All samples that ingest made.
        records: Records of the media shards.
    """
    if not (keys := list(keys)):
        return
    packed, lost = packed_samples(storage, records), lost_shards(storage, records.values())
    units = {file.path for file in storage.list(dataroot.units(INGEST_JOB))}
    gone = {
        key: ingested[key].record
        for key in keys
        if key in ingested and ingested[key].record.file not in units and (key not in packed or packed[key][0] in lost)
    }
    if gone:
        inputs = sorted({str(record.details.get("source") or record.key) for record in gone.values()})
        dataset = next(iter(gone.values())).details.get("dataset")
        what = f"{min(lost)} and the files of the units" if lost else "the files of the units"
        raise ValueError(
            f"{what} are gone that {len(gone)} samples would be copied from: ingest {len(inputs)} inputs again"
            f" ({', '.join(shortened(name) for name in inputs[:3])}{', …' if inputs[3:] else ''}) with"
            f" make shards DATASET={dataset} SOURCE=<folder with them> DATA={storage.uri}"
        )


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


def _results(storage: Storage, job: str, planned: Mapping[str, str], unreadable: Unreadable | None) -> Results:
    """Outcome of the planned units of a job."""
    ledger = Ledger(storage, job)
    results = ledger.results(planned.items())
    if unreadable is not None:
        unreadable.update(ledger.unreadable)
    return results


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
    return ValueError(f"{file} is no record of ours: {why}; move it away, and its unit is run again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_notes(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(lines, list) for lines in value.values()):
        return False
    return all(isinstance(line, str) for lines in value.values() for line in lines)


def _are_keys(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(key, str) and KEY_PATTERN.fullmatch(key) for key in value)
