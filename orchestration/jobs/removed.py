"""Inputs that were taken out of DATA (`make remove`) and lie in SOURCE still: they are rejected, and come back never.

Like a duplicate, a removed input is a unit that rejects its clip without opening it. What is removed is known by the
hashes of `shards/removal_records.py`: a clip by its key, by the content of its source, or by its person. A single piece
of a clip is known, after the clip was cut, by its place in the source; where that is not known, by its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ingest.signatures import Signature
from orchestration import outcomes, plans
from orchestration.plans import INGEST_JOB, INGEST_PLAN_PREFIX
from orchestration.split_groups import SIGNATURE
from orchestration.units.ledger import Ledger
from orchestration.units.records import RejectedPiece, SampleRecord, UnitRecord
from orchestration.units.unit import Output, Unit
from shards.pack import pack_shard
from shards.plan import PlannedSample
from shards.removal_records import REASON, RemovalList
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json, provenance_key
from talkinghead.sampletar import read_members
from talkinghead.schema import CatalogRow, ClipInfo, Rejection

VERSION = 1
_PREFIX = f"{REASON}-"  # of provenance keys
_TIME_LIMIT_S = 600.0
_REWRITTEN = "-r"  # at the end of the provenance key in the name of a tar that has lost a piece


# --- which inputs -----------------------------------------------------------------------------------------------------


def content_of(row: CatalogRow, content: str | None) -> str | None:
    """What a clip is cut out of, and how: inputs of which this is equal are one. None: it cannot be read."""
    if content is None:
        return None
    part = [row.start_s, row.end_s, row.box, row.box_width, row.box_height, row.frame_fps]
    return f"{content} {canonical_json(part).decode()}"


def find_removed(
    removed: RemovalList, rows: Iterable[CatalogRow], contents: Mapping[str, str | None]
) -> dict[str, CatalogRow]:
    """Inputs that were removed, whatever they are called now.

    Args:
        removed: Everything that was removed.
        rows: Catalog rows.
        contents: Key → SHA-256 of the source.

    Returns:
        Key → row.
    """
    found = {}
    for row in rows if removed else ():
        content = content_of(row, contents.get(row.key))
        if (
            removed.has("clip", row.key)
            or (content is not None and removed.has("content", content))
            or removed.has("person", row.split_group)
            or (row.person is not None and removed.has("person", row.person))
        ):
            found[row.key] = row
    return found


def nameless(row: CatalogRow) -> CatalogRow:
    """Row of a removed input: what must be there to account for it, and nothing about the person."""
    return replace(row, person=None, split_group=row.key, attributes="{}", notes=())


# --- their units ------------------------------------------------------------------------------------------------------


def removed_pkey(key: str) -> str:
    """Provenance key of the unit that rejects a removed clip."""
    return _PREFIX + provenance_key(REASON, VERSION, parameters={}, inputs={"key": key})


def removed_unit(row: CatalogRow) -> Unit:
    """Unit that rejects a removed clip."""
    return Unit(
        job=INGEST_JOB,
        key=row.key,
        pkey=removed_pkey(row.key),
        function="orchestration.jobs.removed:run",
        payload={},
        source=row.source or row.key,
        time_limit_s=_TIME_LIMIT_S,
    )


def run(storage: Storage, unit: Unit) -> Output:
    """Reject one removed clip."""
    return Output(rejected=[rejected(unit.key)])


def rejected(key: str) -> RejectedPiece:
    """A removed clip or piece."""
    return RejectedPiece(key=key, rejection=Rejection(reason=REASON))


# --- pieces of clips --------------------------------------------------------------------------------------------------


def strip_removed(storage: Storage) -> None:
    """Reject the pieces of ingested clips that were removed before, and forget removed inputs that have left SOURCE.

    For the writer of DATA, after clips were ingested and before their samples are used. Where nothing was removed this
    lists one folder.
    """
    removed = RemovalList(storage)
    if not removed:
        return
    forget_inputs(storage)
    if not removed.has_pieces:
        return
    contents: dict[str, str | None] = {}
    for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
        plan = plans.find_ingest(storage, name.removeprefix(INGEST_PLAN_PREFIX))
        contents |= plan.contents if plan else {}
    for record in outcomes.ingest_results(storage).values():
        if not isinstance(record, UnitRecord):
            continue
        delete_unstripped(storage, record)
        content = contents.get(record.key)
        is_placed = removed.has_pieces_of(content) and record.file is not None and storage.exists(record.file)
        gone = {
            sample.key
            for sample in record.samples
            if removed.has_piece(sample.key, content, _interval(storage, record, sample) if is_placed else None)
        }
        if gone:
            strip_record(storage, record, gone)


def forget_inputs(storage: Storage) -> None:
    """Delete the records of removed inputs that no plan names any more: their names are those of files."""
    planned = planned_clips(storage)
    for key, pkey in sorted(Ledger(storage, INGEST_JOB).committed):
        if pkey.startswith(_PREFIX) and planned.get(key) != pkey:
            storage.delete(dataroot.record(INGEST_JOB, key, pkey))


def planned_clips(storage: Storage) -> dict[str, str]:
    """Key → provenance key of the clips in every ingest plan."""
    planned: dict[str, str] = {}
    for name in plans.plan_names(storage, INGEST_PLAN_PREFIX):
        plan = plans.find_ingest(storage, name.removeprefix(INGEST_PLAN_PREFIX))
        planned |= plan.units if plan else {}
    return planned


def _interval(storage: Storage, record: UnitRecord, sample: SampleRecord) -> tuple[float, float]:
    """Where a piece begins and ends in its source, in seconds."""
    assert record.file
    content = read_members(storage.read_range, record.file, sample.key, sample.members, "json")["json"]
    info = ClipInfo.from_json(bytes(content))
    return info.start_s, info.end_s


def delete_unstripped(storage: Storage, record: UnitRecord) -> None:
    """Delete the file with all pieces of a clip, which a killed command has left next to the one without some."""
    whole = dataroot.unit(record.job, record.key, record.pkey)
    if record.file is not None and record.file != whole and storage.exists(record.file):
        storage.delete(whole)


def strip_record(storage: Storage, record: UnitRecord, gone: set[str]) -> UnitRecord:
    """Turn some of the samples that a clip's ingest put out into rejected pieces; returns the new record.

    Their bytes go as well, and what the record says of them. The record keeps its name: the clip is done.
    """
    there = [sample for sample in record.samples if sample.key not in gone]
    pieces = [*record.rejected, *(rejected(sample.key) for sample in record.samples if sample.key in gone)]
    if not there:
        bare = UnitRecord(job=record.job, key=record.key, pkey=record.pkey, rejected=pieces)
        _replace(storage, record, bare)
        return bare
    # The tar under another name, so that the old record fits the old tar until the new one counts.
    details = {name: _without(name, value, gone) for name, value in record.details.items()}
    file, samples = record.file, there
    if record.file and storage.exists(record.file):
        number = 1
        while storage.exists(file := dataroot.unit(record.job, record.key, f"{record.pkey}{_REWRITTEN}{number}")):
            number += 1
        planned = [
            PlannedSample.of_members(
                key=sample.key, file=record.file, members=sample.members, num_frames=sample.num_frames,
                sha256=sample.sha256 or None,
            )
            for sample in there
        ]  # fmt: skip
        with storage.staged(file) as sink:
            packed = pack_shard(storage, planned, sink)
        samples = [replace(sample, members=made.members) for sample, made in zip(there, packed.samples, strict=True)]
    # The hash stays: by it other jobs know the content that ingest made.
    stripped = replace(
        record,
        samples=samples,
        rejected=pieces,
        file=file,
        frames=sum(sample.num_frames for sample in samples),
        details=details,
    )
    _replace(storage, record, stripped)
    return stripped


def _replace(storage: Storage, record: UnitRecord, stripped: UnitRecord) -> None:
    storage.write(dataroot.record(record.job, record.key, record.pkey), stripped.to_json())
    if record.file and record.file != stripped.file:
        storage.delete(record.file)


def _without(name: str, value: object, gone: set[str]) -> object:
    """A detail of a record without what it says of some pieces."""
    if name == outcomes.NOTES and isinstance(value, dict):
        return {key: notes for key, notes in value.items() if key not in gone}
    if name == SIGNATURE:
        found = Signature.from_json(value)
        return replace(found, sounds={key: words for key, words in found.sounds.items() if key not in gone}).to_json()
    return value
