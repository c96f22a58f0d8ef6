"""The commands of `python -m orchestration` that take things out of DATA: a person or samples, and what nobody needs.

Every command here that writes to DATA first finishes what a killed one of these has left (`finish_pending`); `python -m
shards drop` asks for that first.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import tyro

from orchestration.jobs.gc import KINDS, Freed, finish_gc, run_gc
from orchestration.jobs.matched import Matched, match_keys, match_person
from orchestration.jobs.remove import ReadByRun, finish_remove, run_remove
from orchestration.units.ledger import writer_lock
from shards.removal_records import RemovalRecord, digest, find_pending, read_keys
from talkinghead.files.storage import LINKED_FOLDERS, Storage
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

Data = Annotated[
    str,
    tyro.conf.arg(
        help="Data folder, or a URI such as s3://bucket/folder. Nothing is written or removed through links in the"
        f" folder, but for those of its own folders that ${LINKED_FOLDERS} names (for example units,records)."
    ),
]
_SHOWN = 50  # lines of one kind that are printed, at most


def remove(
    data: Data,
    person: Annotated[str | None, tyro.conf.arg(help="Person or split group, whose clips all go.")] = None,
    keys: Annotated[Path | None, tyro.conf.arg(help="File with keys of samples or clips, one a line.")] = None,
    dry_run: Annotated[bool, tyro.conf.arg(help="Only show what would go.")] = False,
) -> str:
    """Take a person, or listed samples, out of DATA for good; make gc then frees their bytes."""
    storage = Storage(data)
    if (person is None) == (keys is None):
        raise ValueError("name a person (make remove PERSON=…) or a file of keys (KEYS=file), one of them")
    wanted = read_keys(keys) if keys is not None else []
    with locked(storage) as finished:
        if finished is not None and _is_of(finished, person, wanted):
            return _removed(storage, finished)  # the same command was killed, and given again
        matched = match_person(storage, person) if person is not None else match_keys(storage, wanted)
        _show_matched(matched)
        if dry_run:
            return f"{storage.uri}: {len(matched.samples)} samples of {len(matched.clips)} whole clips would go"
        record = run_remove(storage, matched, _read_by(storage))
    _show_removed(storage, record)
    return _removed(storage, record)


def _is_of(record: RemovalRecord, person: str | None, keys: Collection[str]) -> bool:
    """Whether a removal is that of a person, or else of all these keys of samples and clips."""
    if person is not None:
        return digest(record.salt, "person", person) in record.persons
    return all(
        digest(record.salt, "key", key) in record.keys or digest(record.salt, "clip", key) in record.clips
        for key in keys
    )


def _removed(storage: Storage, record: RemovalRecord) -> str:
    """What a removal has done, in a line."""
    if not record.removed:
        return (
            f"{storage.uri}: {record.unpacked} samples removed, of no finished version; {record.inputs} inputs rejected"
        )
    counts = record.versions[0].samples
    return (
        f"{storage.uri}: {counts[0]} samples before, {record.removed} removed, {counts[1]} after; {record.unpacked}"
        f" not yet packed, {record.inputs} inputs rejected; now make gc DATA={storage.uri} takes them out of the shards"
    )


def gc(
    data: Data,
    dry_run: Annotated[bool, tyro.conf.arg(help="Only show what would go.")] = False,
    force: Annotated[bool, tyro.conf.arg(help="Rewrite shards also while runs of training read them.")] = False,
) -> str:
    """Free what packing no longer needs: packed units' files, old indexes, unfinished files, removed samples."""
    storage = Storage(data)
    with locked(storage), Progress() as progress:
        freed = run_gc(
            storage,
            dry_run=dry_run,
            force=force,
            progress=lambda done, total: progress("rewrite", done, total),
        )
    _show_freed(freed)
    would = "would be " if dry_run else ""
    return (
        f"{storage.uri}: {sum(freed.bytes.values()):,} bytes {would}freed, {freed.samples} removed samples {would}taken"
        " out of the shards"
    )


def _read_by(storage: Storage) -> ReadByRun:
    """Tells what a run of this machine has learnt from, by its order alone."""

    def read_by(run: str, keys: Collection[str]) -> tuple[int, int]:
        from train.seen import readings_of  # with PyTorch, which a DATA without trainings does not need

        found = readings_of(run, keys=keys, data=storage.location)
        return len(found.steps), found.up_to

    return read_by


def _show_matched(matched: Matched) -> None:
    """Print what goes; the result alone is on stdout."""
    for name, keys in (("sample", matched.samples), ("whole clip", matched.clips)):
        for key in sorted(keys)[:_SHOWN]:
            copy = ", of equal bytes as one that goes" if name == "whole clip" and key in matched.copies else ""
            print(f"{name} {key}{copy}", file=sys.stderr)
        if (more := len(keys) - _SHOWN) > 0:
            print(f"… and {more} more of this kind", file=sys.stderr)
    for key, name in sorted(matched.alike.items())[:_SHOWN]:
        print(f"{key} ({name!r}) is of the same recording as one that goes, and stays: name it, too", file=sys.stderr)
    if (more := len(matched.alike) - _SHOWN) > 0:
        print(f"… and {more} more of this kind", file=sys.stderr)


def _show_removed(storage: Storage, record: RemovalRecord) -> None:
    """Print the counts by which a removal is proven, and what is left to do."""
    for counts in record.versions:
        splits = ", ".join(f"{name} {one} - {one - two} = {two}" for name, (one, two) in counts.splits.items())
        one, two = counts.samples
        print(f"{counts.version}: {one} - {one - two} = {two} samples; {splits}", file=sys.stderr)
        for number, (before, after) in list(counts.shards.items())[:_SHOWN]:
            print(f"  shard {number}: {before} - {before - after} = {after}", file=sys.stderr)
    for fit in record.fits:
        print(f"the global fit {fit} was made of them and is gone: make basis makes it of the others", file=sys.stderr)
    for run in record.runs:
        what = (
            f"has learnt from {run.seen} of them by step {run.steps}"
            if run.seen is not None
            else f"may have learnt from them ({run.note}): python -m train seen {run.run} there, before make gc"
        )
        again = "it cannot go on, since its order was over other samples: start another RUN"
        print(f"run {run.run} on {run.host} {what}; {again}", file=sys.stderr)
    print(f"kept as {storage.describe('removed')}", file=sys.stderr)


def _show_freed(freed: Freed) -> None:
    """Print what a collection removes, by kind."""
    for kind in KINDS:
        if freed.files[kind]:
            print(f"{kind}: {freed.files[kind]:,} files, {freed.bytes[kind]:,} bytes", file=sys.stderr)
    for run in freed.runs:
        print(f"the run {run} has pinned an index that is replaced: start another RUN", file=sys.stderr)


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[RemovalRecord | None]:
    """DATA locked for this process, with whatever a killed removal or collection has left finished; gives the record of
    the removal that was."""
    if storage.local_root is not None and not storage.local_root.is_dir():  # no lock is made where no data set is
        raise FileNotFoundError(f"there is no {storage.uri}")
    with writer_lock(storage):
        yield finish_pending(storage)


def finish_pending(storage: Storage) -> RemovalRecord | None:
    """Finish what a killed removal or collection has left; the caller holds the lock of DATA.

    Returns:
        The record of the removal that was finished; None where none was.
    """
    if (pending := find_pending(storage)) is None:
        return None
    if pending.job == "gc":
        finish_gc(storage, pending)
        return None
    log.warning("a removal that was interrupted is finished first")
    record = finish_remove(storage, pending)
    _show_removed(storage, record)
    return record
