"""Taking a person, or listed samples, out of DATA.

Readers see the samples until one atomic write of `DATASET.json`, and never after it. Then the plans and records of the
jobs follow, so that no later job sees them either: to ingest, their inputs are rejected with the reason `removed`.
What is under way is noted first (`removed/pending.json`): a killed removal is finished by the next command that writes,
and each of its steps may be repeated. At its end the counts are read anew from what was written, compared, and kept in
a record without names. The bytes stay in the shards until `make gc`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from ingest.catalog import read_catalog, write_catalog
from orchestration import outcomes, plans
from orchestration.jobs.matched import Matched, catalogs_of
from orchestration.jobs.pack import plan_pack
from orchestration.jobs.removed import nameless, rejected, removed_pkey, strip_record
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX, PACK_MEDIA_JOB, pack_annotation_job
from orchestration.units.ledger import Ledger
from orchestration.units.records import RECORD_BYTES, UnitRecord
from shards.fit_files import clips_of
from shards.index import read_index
from shards.manifest import DatasetManifest, read_manifest, write_manifest
from shards.pins import read_pins
from shards.plan import PlannedSample
from shards.removal import IndexCounts, count, without_samples
from shards.removal_records import (
    PENDING,
    Pending,
    RemovalRecord,
    RunThatRead,
    VersionCounts,
    digests,
    new_pending,
    write_pending,
    write_record,
)
from shards.versions import FIT, fit_name, versions
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import error_text, one_line

log = logging.getLogger(__name__)

_SHOWN = 5

ReadByRun = Callable[[str, Collection[str]], tuple[int, int]]
"""Function (folder of a run, keys) → how many of them it has learnt from, and up to which step."""


# --- the whole job ----------------------------------------------------------------------------------------------------


def run_remove(storage: Storage, matched: Matched, read_by: ReadByRun) -> RemovalRecord:
    """Take samples out of DATA, whose lock the caller holds.

    Args:
        storage: DATA.
        matched: What to take out.
        read_by: Tells what a run of this machine has learnt from.

    Returns:
        The record, as it is kept in DATA.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: No sample would be left, or something in DATA is damaged.
    """
    manifest = read_manifest(storage)
    there = read_index(storage, manifest.annotation())
    if set(there.texts("key")) <= matched.samples:
        raise ValueError(f"no sample of {storage.uri} would be left: remove the folder instead")
    pending = new_pending(
        samples=sorted(matched.samples),
        clips=sorted(matched.clips),
        contents=sorted(matched.contents),
        persons=sorted(matched.persons),
        fits={
            fit_name(fit): fit.path
            for fit in manifest.fits
            if (clips := clips_of(storage, fit)) is None or not matched.samples.isdisjoint(clips)
        },
        before=[_pairs(version, one, one) for version, one in _counts(storage, manifest)],
    )
    write_pending(storage, pending)
    return finish_remove(storage, pending, read_by)


def finish_remove(storage: Storage, pending: Pending, read_by: ReadByRun) -> RemovalRecord:
    """Do what is left of a removal; see `run_remove`."""
    gone = set(pending.samples)
    # Who may have read them: the old indexes are still there.
    runs = list(_runs(storage, gone, read_by))
    # Readers: one write, after which nobody finds them. Then the files that hold nothing else.
    manifest = read_manifest(storage)
    if gone & set(read_index(storage, manifest.annotation()).texts("key")):
        without = without_samples(storage, manifest, gone)
        write_manifest(storage, without.manifest)
        for shard in without.shards:
            storage.delete(shard.name)
    for path in pending.fits.values():
        storage.delete(path)
    # The jobs: ingest, which the others follow; then what was made of its samples; then the shards' records.
    _strip_ingest(storage, pending, gone)
    _strip_columns(storage, gone)
    _strip_packed(storage, gone)
    _delete_set_aside(storage, gone | set(pending.clips))
    for file in storage.list(dataroot.REPORT_FOLDER):  # it shows faces; `make report` writes it anew
        storage.delete(file.path)
    # The proof, from what is on the disk now.
    record = _proof(storage, pending, gone, runs)
    write_record(storage, pending.path, record)
    storage.delete(PENDING)
    return record


# --- its steps --------------------------------------------------------------------------------------------------------


def _runs(storage: Storage, gone: set[str], read_by: ReadByRun) -> Iterator[RunThatRead]:
    """The runs that have pinned a version, each with what it has learnt from."""
    for pin in read_pins(storage):
        if pin.is_gone:
            continue
        seen, steps, note = None, None, ""
        try:
            seen, steps = read_by(pin.run, gone)
        except (ValueError, OSError) as error:
            note = one_line(error_text(error))
        yield RunThatRead(host=pin.host, run=pin.run, seen=seen, steps=steps, note=note)


def _strip_ingest(storage: Storage, pending: Pending, gone: set[str]) -> None:
    """Inputs: whole clips are rejected, others lose the pieces. Their names go out of the catalogs."""
    whole = set(pending.clips)
    for name in catalogs_of(storage):
        plan = plans.find_ingest(storage, name)
        planned = {key: removed_pkey(key) for key in whole if plan and key in plan.units}
        for key, pkey in planned.items():
            record = UnitRecord(job=INGEST_JOB, key=key, pkey=pkey, rejected=[rejected(key)])
            storage.write(dataroot.record(INGEST_JOB, key, pkey), record.to_json())
        if plan and any(plan.units[key] != pkey for key, pkey in planned.items()):
            plans.write_plan(storage, f"{INGEST_PLAN_PREFIX}{name}", replace(plan, units=plan.units | planned))
        catalog = read_catalog(storage, name)
        rows = [nameless(row) if row.key in whole else row for row in catalog.rows]
        if rows != catalog.rows:
            write_catalog(storage, replace(catalog, rows=rows))
    _delete_of(storage, INGEST_JOB, whole, but={dataroot.record(INGEST_JOB, key, removed_pkey(key)) for key in whole})
    for record in outcomes.ingest_results(storage).values():
        if isinstance(record, UnitRecord) and (mine := gone & {sample.key for sample in record.samples}):
            strip_record(storage, record, mine)


def _strip_columns(storage: Storage, gone: set[str]) -> None:
    """What was made of single samples: annotations and derived columns, planned, made or failed."""
    for name in plans.plan_names(storage, plans.ANNOTATE_PREFIX, *plans.COLUMN_PREFIXES):
        plan = plans.find_plan(storage, name)
        if plan and (units := {key: pkey for key, pkey in plan.units.items() if key not in gone}) != plan.units:
            plans.write_plan(storage, name, replace(plan, units=units))
        _delete_of(storage, name, gone)


def _delete_of(storage: Storage, job: str, keys: Collection[str], but: Collection[str] = ()) -> None:
    """Delete records and outputs of a job's units."""
    folders = {
        place.rpartition("/")[0]
        for key in keys
        for place in (dataroot.record(job, key, "0"), dataroot.unit(job, key, "0"))
    }
    folders |= {dataroot.quarantines(job), f"released/{job}"} if keys else set()
    for folder in sorted(folders):
        for file in storage.list(folder):
            if file.path.rpartition("/")[2].partition(".")[0] in keys and file.path not in but:
                storage.delete(file.path)


def _delete_set_aside(storage: Storage, keys: set[str]) -> None:
    """Delete what was set aside, damaged: records of the samples, and plans and catalogs, which name everybody."""
    for file in storage.list(dataroot.DAMAGED_FOLDER):
        of_all = file.path.startswith(tuple(f"{dataroot.DAMAGED_FOLDER}/{folder}/" for folder in ("catalog", "plans")))
        if of_all or file.path.rpartition("/")[2].partition(".")[0] in keys:
            storage.delete(file.path)


def _strip_packed(storage: Storage, gone: set[str]) -> None:
    """Records of the shards, and their plan."""
    manifest = read_manifest(storage)
    ingested = outcomes.ingested_samples(storage)
    listed = {entry.version for entry in manifest.annotations}
    # Versions that have shards, listed in `DATASET.json` or not.
    for version in [None, *(found.name for found in versions(storage) if found.kind != FIT)]:
        job = pack_annotation_job(version) if version else PACK_MEDIA_JOB
        for key, pkey in sorted(Ledger(storage, job).committed):
            path = dataroot.record(job, key, pkey)
            record = UnitRecord.from_json(storage.read(path, RECORD_BYTES, "record"), storage.describe(path))
            there = [sample for sample in record.samples if sample.key not in gone]
            if len(there) == len(record.samples):
                continue
            # A shard that no reader finds is made anew, if it is wanted at all.
            number = int(key.rpartition("-")[2])
            lost = (not there and number >= len(manifest.media)) or (version is not None and version not in listed)
            if lost:
                storage.delete(path)
                if record.file:
                    storage.delete(record.file)
                continue
            details = dict(record.details)
            details["removed"] = details.get("removed", 0) + len(record.samples) - len(there)
            if blank := details.get("blank"):
                details["blank"] = [key for key in blank if key not in gone]
            stripped = replace(
                record, samples=there, details=details, frames=sum(sample.num_frames for sample in there)
            )
            # The key says what a media shard is packed from: less, now.
            if version is None and all(sample.key in ingested for sample in there):
                parts = [_part(ingested[sample.key]) for sample in there]
                stripped = replace(stripped, pkey=plan_pack(None, number, parts, None).pkey)
            storage.write(dataroot.record(job, key, stripped.pkey), stripped.to_json())
            if stripped.pkey != pkey:
                storage.delete(path)
    if (plan := plans.find_shards(storage)) is not None:
        shards = [[key for key in keys if key not in gone] for keys in plan.shards]
        while len(shards) > len(manifest.media) and not shards[-1]:
            shards.pop()
        if shards != plan.shards:
            plans.write_plan(storage, plans.SHARD_PLAN, replace(plan, shards=shards))


def _part(item: outcomes.IngestedSample) -> tuple[PlannedSample, str]:
    assert item.record.file and item.record.file_sha256
    sample = PlannedSample.of_members(
        key=item.sample.key, file=item.record.file, members=item.sample.members, num_frames=item.sample.num_frames
    )
    return sample, item.record.file_sha256


# --- the proof --------------------------------------------------------------------------------------------------------


def _counts(storage: Storage, manifest: DatasetManifest) -> Iterator[tuple[str, IndexCounts]]:
    for entry in manifest.annotations:
        yield entry.version, count(read_index(storage, entry), len(manifest.media))


def _pairs(version: str, before: IndexCounts, after: IndexCounts) -> VersionCounts:
    lost = len(before.shards) - len(after.shards)
    shards = zip(before.shards, [*after.shards, *[0] * lost], strict=True)
    return VersionCounts(
        version=version,
        samples=(before.samples, after.samples),
        kept=(before.kept, after.kept),
        splits={split: (number, after.splits[split]) for split, number in before.splits.items()},
        shards={str(number): pair for number, pair in enumerate(shards)},
    )


def _proof(storage: Storage, pending: Pending, gone: set[str], runs: list[RunThatRead]) -> RemovalRecord:
    """The record of a removal, made of what DATA says now.

    Raises:
        ValueError: A sample is still in an index, or the counts do not add up.
    """
    manifest = read_manifest(storage)
    before = {counts.version: counts for counts in pending.before}
    found = []
    removed = 0
    for entry in manifest.annotations:
        index = read_index(storage, entry)
        if left := gone & set(index.texts("key")):
            raise ValueError(f"{storage.describe(entry.index)} still lists {min(left)}, which was removed")
        was = before.get(entry.version)
        if was is None:
            continue
        now = count(index, len(manifest.media))
        pair = VersionCounts(
            version=entry.version,
            samples=(was.samples[0], now.samples),
            kept=(was.kept[0], now.kept),
            splits={split: (pair[0], now.splits[split]) for split, pair in was.splits.items()},
            shards={
                number: (pair[0], now.shards[int(number)] if int(number) < len(now.shards) else 0)
                for number, pair in was.shards.items()
            },
        )
        removed = pair.samples[0] - pair.samples[1]
        for part in (pair.splits, pair.shards):
            if sum(one - other for one, other in part.values()) != removed:
                raise ValueError(f"the counts of {entry.version} do not add up: {removed} samples less, but {part}")
        found.append(replace(pair, shards={n: both for n, both in pair.shards.items() if both[0] != both[1]}))
    return RemovalRecord(
        time=pending.time,
        removed=removed,
        unpacked=len(gone) - removed,
        inputs=len(pending.clips),
        versions=found,
        fits=sorted(pending.fits),
        runs=runs,
        salt=pending.salt,
        keys=digests(pending.salt, "key", pending.samples),
        clips=digests(pending.salt, "clip", pending.clips),
        contents=digests(pending.salt, "content", pending.contents),
        persons=digests(pending.salt, "person", pending.persons),
    )
