"""Taking a person, or listed samples, out of DATA.

Everything that must be readable is read first, so that a damaged file stops the removal before it begins. Readers see
the samples until one atomic write of `DATASET.json`, and never after it. Then the plans and records of the jobs follow,
so that no later job sees them either: to ingest, their inputs are rejected with the reason `removed`. What is under way
is noted first (`removed/pending.json`): a killed removal is finished by the next command that writes, and each of its
steps may be repeated. At its end the counts are read anew from what was written, compared with what they must be, and
kept in a record without names. The bytes stay in the shards until `make gc`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from ingest.catalog import read_catalog
from orchestration import outcomes, plans
from orchestration.jobs.matched import Matched
from orchestration.jobs.pack import plan_pack
from orchestration.jobs.removed import delete_unstripped, planned_clips, rejected, removed_pkey, strip_record
from orchestration.jobs.stripped_segments import strip_segments
from orchestration.jobs.traces import Names, delete_naming, delete_of_units, delete_set_aside, strip_catalogs
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX, PACK_MEDIA_JOB, PACK_PREFIX
from orchestration.split_groups import forget_related
from orchestration.units.ledger import Ledger
from orchestration.units.records import UnitRecord
from shards.index import read_index
from shards.manifest import DatasetManifest, find_manifest, write_manifest
from shards.pins import read_pins
from shards.plan import PlannedSample
from shards.removal import IndexCounts, count, fits_of, without_samples
from shards.removal_records import (
    PENDING,
    Pending,
    RemovalRecord,
    RunThatRead,
    VersionCounts,
    digests,
    hashed,
    new_pending,
    write_pending,
    write_record,
)
from shards.versions import fit_name
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import error_text, one_line
from talkinghead.schema import CUT_SUFFIX

log = logging.getLogger(__name__)

_CUT = re.compile(rf"{CUT_SUFFIX}\d+$")  # of the keys of a clip's pieces (`cut_key`)

ReadByRun = Callable[[str, Collection[str]], tuple[int, int]]
"""Function (folder of a run, keys) → how many of them it has learnt from, and up to which step."""


# --- the whole job ----------------------------------------------------------------------------------------------------


def run_remove(storage: Storage, matched: Matched, read_by: ReadByRun) -> RemovalRecord:
    """Take samples out of DATA, whose lock the caller holds; nothing of it need be packed or annotated yet.

    Args:
        storage: DATA.
        matched: What to take out.
        read_by: Tells what a run of this machine has learnt from.

    Returns:
        The record, as it is kept in DATA.

    Raises:
        ValueError: No sample would be left, or something in DATA is damaged: nothing was changed. Or the counts do not
            add up at the end.
    """
    manifest = find_manifest(storage)
    if manifest and set(read_index(storage, manifest.annotation()).texts("key")) <= matched.samples:
        raise ValueError(f"no sample of {storage.uri} would be left: remove the folder instead")
    _check_readable(storage)
    names = _names(matched.samples, matched.clips, matched.persons, matched.names)
    pending = new_pending(
        samples=sorted(matched.samples),
        clips=sorted(matched.clips),
        contents=sorted(matched.contents),
        persons=sorted(matched.persons),
        pieces=matched.pieces,
        names=sorted(matched.names),
        fits={
            fit_name(fit): fit.path
            for fit in (fits_of(storage, manifest, matched.samples, matched.persons) if manifest else ())
        },
        counts=list(_expected(storage, manifest, matched.samples)) if manifest else [],
        # While the old indexes are there.
        runs=list(_runs(storage, matched.samples, read_by, names)),
    )
    write_pending(storage, pending)
    return finish_remove(storage, pending)


def finish_remove(storage: Storage, pending: Pending) -> RemovalRecord:
    """Do what is left of a removal; see `run_remove`."""
    gone, whole = set(pending.samples), set(pending.clips)
    names = _names(pending.samples, pending.clips, pending.persons, pending.names)
    # Readers: one write, after which nobody finds them. Then the files that hold nothing else.
    manifest = find_manifest(storage)
    if manifest and any(gone & set(read_index(storage, entry).texts("key")) for entry in manifest.annotations):
        without = without_samples(storage, manifest, gone, pending.persons)
        pending = replace(pending, files=[shard.name for shard in without.shards])
        write_pending(storage, pending)
        write_manifest(storage, without.manifest)
    delete_unnamed(storage, pending.files)
    for path in pending.fits.values():
        storage.delete(path)
    # The jobs: ingest, which the others follow; then what was made of its samples; then the shards' records.
    _strip_ingest(storage, whole, gone)
    strip_catalogs(storage, whole, names, pending.names)
    _strip_columns(storage, gone)
    delete_of_units(storage, gone, whole, {dataroot.record(INGEST_JOB, key, removed_pkey(key)) for key in whole})
    strip_segments(storage, (gone | whole).__contains__)
    _strip_packed(storage, gone)
    # What names them elsewhere: what is related is found anew, and the report, which shows faces, written anew.
    delete_naming(storage, names)
    forget_related(storage)
    delete_set_aside(storage, gone | whole | {_CUT.sub("", key) for key in gone})
    for file in storage.list(dataroot.REPORT_FOLDER):
        storage.delete(file.path)
    # The proof, from what is on the disk now. Counts that do not add up are told once, and are no reason to begin anew.
    record, wrong = _proof(storage, pending, gone)
    write_record(storage, pending.path, record)
    storage.delete(PENDING)
    if wrong:
        raise ValueError(f"{wrong}; {storage.describe(pending.path)} holds the counts")
    return record


def delete_unnamed(storage: Storage, files: Collection[str]) -> None:
    """Delete those of some shards that `DATASET.json` does not name: others have taken their place."""
    manifest = find_manifest(storage) if files else None
    if manifest is not None:
        shards = [*manifest.media, *(shard for entry in manifest.annotations for shard in entry.shards)]
        for path in sorted(set(files) - {shard.name for shard in shards}):
            storage.delete(path)


def _names(samples: Collection[str], clips: Collection[str], persons: Collection[str], files: Collection[str]) -> Names:
    return Names([*samples, *clips], [*persons, *files])


# --- before anything is written ---------------------------------------------------------------------------------------


def _check_readable(storage: Storage) -> None:
    """Raise `ValueError` unless all plans, catalogs and records that a removal changes can be read."""
    names = plans.plan_names(storage, INGEST_PLAN_PREFIX, plans.ANNOTATE_PREFIX, *plans.COLUMN_PREFIXES)
    for name in [*names, plans.SHARD_PLAN]:
        plans.find_plan(storage, name)
    # A catalog that is lost names inputs of a person that no sample does: those that failed.
    for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
        read_catalog(storage, name.removeprefix(INGEST_PLAN_PREFIX))
    for job in pack_jobs(storage):
        unreadable: outcomes.Unreadable = {}
        outcomes.pack_records(storage, job, unreadable)
        for path, why in unreadable.items():
            raise ValueError(
                f"{why}. Nothing was removed: put {path} back from a copy, or move it away and let make shards"
                f" DATA={storage.uri} (or the command of its version) pack the shard again"
            )
    outcomes.ingest_results(storage)


def _runs(storage: Storage, gone: Collection[str], read_by: ReadByRun, names: Names) -> Iterator[RunThatRead]:
    """The runs that have pinned a version, each with what it has learnt from."""
    for pin in read_pins(storage):
        if pin.is_gone:
            continue
        seen, steps, note = None, None, ""
        try:
            seen, steps = read_by(pin.run, gone)
        except Exception as error:  # noqa: BLE001  a RUN may be a stranger's, and hold anything
            note = one_line(error_text(error)) or type(error).__name__
            if names.are_in(note):  # the record names nobody
                note = f"{type(error).__name__}, about a removed sample"
        yield RunThatRead(host=pin.host, run=pin.run, seen=seen, steps=steps, note=note)


# --- its steps --------------------------------------------------------------------------------------------------------


def _strip_ingest(storage: Storage, whole: set[str], gone: set[str]) -> None:
    """Inputs: whole clips are rejected, others lose the pieces."""
    for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
        plans.set_aside_damaged(storage, name)
        plan = plans.find_plan(storage, name)
        planned = {key: removed_pkey(key) for key in whole if plan and key in plan.units}
        for key, pkey in planned.items():
            record = UnitRecord(job=INGEST_JOB, key=key, pkey=pkey, rejected=[rejected(key)])
            storage.write(dataroot.record(INGEST_JOB, key, pkey), record.to_json())
        if plan and any(plan.units[key] != pkey for key, pkey in planned.items()):
            plans.write_plan(storage, name, replace(plan, units=plan.units | planned))
    # Pieces: of every record of their clips. Under other settings the same moments have other keys, so those records
    # that the plan does not name go as a whole.
    touched = (gone | {_CUT.sub("", key) for key in gone}) - whole
    planned = planned_clips(storage)
    ledger = Ledger(storage, INGEST_JOB)
    ledger.committed = {pair for pair in ledger.committed if pair[0] in touched}
    known = {key for key, _ in ledger.committed}
    named = {pair for pair in ledger.committed if planned.get(pair[0]) == pair[1]}
    stale = {pair for pair in ledger.committed - named if pair[0] in {key for key, _ in named}}
    for pair in sorted(stale):
        storage.delete(dataroot.record(INGEST_JOB, *pair))
    ledger.committed -= stale
    files = {_strip_piece(storage, record, gone) for record in _readable(ledger)}
    for folder in sorted({dataroot.unit(INGEST_JOB, key, "0").rpartition("/")[0] for key in known}):
        for file in storage.list(folder, ".tar"):
            if file.path.rpartition("/")[2].partition(".")[0] in known and file.path not in files:
                storage.delete(file.path)


def _readable(ledger: Ledger) -> list[UnitRecord]:
    """All commit records of a job that can be read; others are set aside."""
    found = ledger.commits()
    for path, why in ledger.unreadable.items():
        ledger.set_aside(path, why, "its unit is run again")
    ledger.unreadable = {}
    return found


def _strip_piece(storage: Storage, record: UnitRecord, gone: set[str]) -> str | None:
    """Take pieces out of the record of a clip and its file; returns the file's path."""
    if mine := gone & {sample.key for sample in record.samples}:
        record = strip_record(storage, record, mine)
    delete_unstripped(storage, record)
    return record.file


def _strip_columns(storage: Storage, gone: set[str]) -> None:
    """Plans of what was made of single samples: annotations and derived columns."""
    for name in plans.plan_names(storage, plans.ANNOTATE_PREFIX, *plans.COLUMN_PREFIXES):
        plans.set_aside_damaged(storage, name)
        plan = plans.find_plan(storage, name)
        units = {key: pkey for key, pkey in plan.units.items() if key not in gone} if plan else {}
        if plan and (units != plan.units or storage.exists(dataroot.old_plan(name))):
            plans.write_plan(storage, name, replace(plan, units=units))


def pack_jobs(storage: Storage) -> list[str]:
    """Names of the jobs that have packed shards of a version, listed in `DATASET.json` or not, or media."""
    return sorted({job for file in storage.list("records") if (job := file.path.split("/")[1]).startswith(PACK_PREFIX)})


def _strip_packed(storage: Storage, gone: set[str]) -> None:
    """Records of the shards, and their plan."""
    manifest = find_manifest(storage)
    num_shards = len(manifest.media) if manifest else 0
    ingested = outcomes.ingested_samples(storage)
    for job in pack_jobs(storage):
        ledger = Ledger(storage, job)
        for record in _readable(ledger):
            there = [sample for sample in record.samples if sample.key not in gone]
            blank = outcomes.blank_rows(record)
            if len(there) == len(record.samples) and gone.isdisjoint(blank):
                continue
            # A shard that held nothing else, after those of `DATASET.json`, is none any more.
            number = int(record.key.rpartition("-")[2])
            path = dataroot.record(job, record.key, record.pkey)
            if not there and number >= num_shards:
                storage.delete(path)
                if record.file:
                    storage.delete(record.file)
                continue
            details = dict(record.details)
            details["removed"] = details.get("removed", 0) + len(record.samples) - len(there)
            if blank:
                details["blank"] = [key for key in blank if key not in gone]
            stripped = replace(
                record, samples=there, details=details, frames=sum(sample.num_frames for sample in there)
            )
            # The key says what a media shard is packed from: less, now.
            if job == PACK_MEDIA_JOB and all(sample.key in ingested for sample in there):
                parts = [_part(ingested[sample.key]) for sample in there]
                stripped = replace(stripped, pkey=plan_pack(None, number, parts, None).pkey)
            storage.write(dataroot.record(job, record.key, stripped.pkey), stripped.to_json())
            if stripped.pkey != record.pkey:
                storage.delete(path)
    plans.set_aside_damaged(storage, plans.SHARD_PLAN)
    if (plan := plans.find_shards(storage)) is not None:
        shards = [[key for key in keys if key not in gone] for keys in plan.shards]
        while len(shards) > num_shards and not shards[-1]:
            shards.pop()
        if shards != plan.shards or storage.exists(dataroot.old_plan(plans.SHARD_PLAN)):
            plans.write_plan(storage, plans.SHARD_PLAN, replace(plan, shards=shards))


def _part(item: outcomes.IngestedSample) -> tuple[PlannedSample, str]:
    assert item.record.file and item.record.file_sha256
    sample = PlannedSample.of_members(
        key=item.sample.key, file=item.record.file, members=item.sample.members, num_frames=item.sample.num_frames
    )
    return sample, item.record.file_sha256


# --- the proof --------------------------------------------------------------------------------------------------------


def _expected(storage: Storage, manifest: DatasetManifest, gone: Collection[str]) -> Iterator[VersionCounts]:
    """Counts of every version, and those that are right once the samples are gone."""
    for entry in manifest.annotations:
        index, num_shards = read_index(storage, entry), len(manifest.media)
        yield _pairs(entry.version, count(index, num_shards), count(index, num_shards, but=gone))


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


def _before(counts: VersionCounts) -> IndexCounts:
    return IndexCounts(
        samples=counts.samples[0],
        kept=counts.kept[0],
        splits={split: before for split, (before, _) in counts.splits.items()},
        shards=[before for before, _ in counts.shards.values()],
    )


def _proof(storage: Storage, pending: Pending, gone: set[str]) -> tuple[RemovalRecord, str]:
    """The record of a removal, made of what DATA says now; and what is wrong with its counts.

    Raises:
        ValueError: A sample is still in an index.
    """
    manifest = find_manifest(storage)
    expected = {counts.version: counts for counts in pending.counts}
    found, wrong, removed = [], "", 0
    for entry in manifest.annotations if manifest else ():
        index = read_index(storage, entry)
        if left := gone & set(index.texts("key")):
            raise ValueError(f"{storage.describe(entry.index)} still lists {min(left)}, which was removed")
        if (right := expected.get(entry.version)) is None:
            continue
        pair = _pairs(entry.version, _before(right), count(index, len(entry.shards)))
        removed = pair.samples[0] - pair.samples[1]
        if pair != right:
            asked = right.samples[0] - right.samples[1]
            wrong = f"the counts of {entry.version} do not add up: {removed} samples less, {asked} were to go"
        found.append(replace(pair, shards={n: both for n, both in pair.shards.items() if both[0] != both[1]}))
    record = RemovalRecord(
        time=pending.time,
        removed=removed,
        unpacked=len(gone) - removed,
        inputs=len(pending.clips),
        versions=found,
        fits=sorted(pending.fits),
        runs=pending.runs,
        salt=pending.salt,
        keys=digests(pending.salt, "key", pending.samples),
        clips=digests(pending.salt, "clip", pending.clips),
        contents=digests(pending.salt, "content", pending.contents),
        persons=digests(pending.salt, "person", pending.persons),
        pieces=sorted((hashed(pending.salt, piece) for piece in pending.pieces), key=lambda piece: piece.key),
    )
    return record, wrong
