"""The ledger: which units are committed or quarantined, and the lease of the one command that may change that."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orchestration.units.damage import set_aside
from orchestration.units.records import RECORD_BYTES, QuarantineRecord, UnitRecord
from orchestration.units.segment_records import SegmentRecord, read_segment
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.foreign import warn_of_owner
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import one_line

log = logging.getLogger(__name__)


Record = TypeVar("Record", UnitRecord, QuarantineRecord)


class Ledger:
    """Commit and quarantine records of one job, listed once when the ledger is made; those of segments are read then.

    A unit's own record outweighs the row of its segment: it was released from quarantine and tried again, or an earlier
    release has made it.
    """

    def __init__(self, storage: Storage, job: str) -> None:
        self.storage = storage
        self.job = job
        self.unreadable: dict[str, str] = {}
        """Path of a record that was to be read and cannot be → what is wrong with it. Its unit counts as pending, and
        so do those of a segment."""
        # A record is named by key and provenance key, so a listing tells what is done without opening a file.
        files = storage.list(dataroot.records(job))
        self._own = {keys for file in files if (keys := dataroot.keys_of_record(file.path))}
        self.quarantined = {keys for keys, _ in _records(storage, dataroot.quarantines(job))}
        names = sorted(found[1] for file in files if (found := dataroot.segment_of_record(file.path)))
        self.segments: dict[str, SegmentRecord] = {}
        """Name → commit record of a segment, of those that can be read."""
        with self._reading() as pool:
            for name, record in zip(names, pool.map(self._read_segment, names), strict=True):
                if record is not None:
                    self.segments[name] = record
        self._rows = {
            pair: (record, name) for name, segment in self.segments.items() for pair, record in segment.units().items()
        }
        self.committed = self._own | self._rows.keys()

    def is_done(self, unit: Unit) -> bool:
        """Whether the unit is committed, or quarantined until somebody retries it."""
        return (unit.key, unit.pkey) in self.committed or (unit.key, unit.pkey) in self.quarantined

    def results(self, units: Iterable[tuple[str, str]]) -> dict[str, UnitRecord | QuarantineRecord | None]:
        """Record of each unit: key → commit record, quarantine record, or None while it is pending.

        Args:
            units: Pairs of key and provenance key.
        """
        pairs = list(units)
        return {pair[0]: result for pair, result in zip(pairs, self._results(pairs), strict=True)}

    def commits(self) -> list[UnitRecord]:
        """All commit records that can be read, also several of one key, by key and provenance key."""
        return [record for record in self._results(sorted(self.committed)) if isinstance(record, UnitRecord)]

    def _results(self, pairs: list[tuple[str, str]]) -> list[UnitRecord | QuarantineRecord | None]:
        with self._reading() as pool:
            return list(pool.map(self._result, pairs))

    def _reading(self) -> ThreadPoolExecutor:
        # Waiting dominates: many small reads from an object store, a few from a disk.
        return ThreadPoolExecutor(16 if self.storage.local_root is None else 4)

    def segment_of(self, pair: tuple[str, str]) -> str:
        """Name of the segment whose record says that a unit is done; empty where it has a record of its own.

        Args:
            pair: Key and provenance key.
        """
        return "" if pair in self._own or pair not in self._rows else self._rows[pair][1]

    def path_of(self, pair: tuple[str, str]) -> str:
        """Path of the commit record that counts for a unit: its own, or that of its segment."""
        segment = self.segment_of(pair)
        return dataroot.segment_record(self.job, segment) if segment else dataroot.record(self.job, *pair)

    def set_aside_unreadable(self, units: Iterable[Unit]) -> dict[str, UnitRecord]:
        """Set the records of units aside that cannot be read: the units count as pending, and are run again.

        Only for the writer of DATA.

        Args:
            units: Units of the job.

        Returns:
            Key → commit record, of the committed units whose output is a file that is still needed.
        """
        pairs = {(unit.key, unit.pkey): unit for unit in units if self.is_done(unit)}
        needed = {}
        for key, record in self.results(pairs).items():
            if isinstance(record, UnitRecord) and record.file is not None and not pairs[key, record.pkey].is_freed:
                needed[key] = record
        for path, why in self.unreadable.items():
            self.set_aside(path, why, "its unit is run again")
        self.unreadable = {}
        return needed

    def set_aside(self, path: str, why: str, then: str) -> None:
        """Set one record aside, and count its unit, or its segment's, as pending. Only for the writer of DATA."""
        set_aside(self.storage, path, why, then)
        if (keys := dataroot.keys_of_record(path)) and path.startswith(f"{dataroot.QUARANTINE_FOLDER}/"):
            self.quarantined.discard(keys)
        elif keys:
            self._own.discard(keys)
            if keys not in self._rows:
                self.committed.discard(keys)
        elif (found := dataroot.segment_of_record(path)) and found[1] in self.segments:
            for pair in self.segments.pop(found[1]).units():
                if pair in self._rows and self._rows[pair][1] == found[1]:
                    del self._rows[pair]
                    self.committed -= {pair} - self._own

    def _read_segment(self, name: str) -> SegmentRecord | None:
        try:
            return read_segment(self.storage, self.job, name)
        except FileNotFoundError:  # gone since the listing
            return None
        except ValueError as error:
            self.unreadable[dataroot.segment_record(self.job, name)] = str(error)
            return None

    def _result(self, pair: tuple[str, str]) -> UnitRecord | QuarantineRecord | None:
        # A commit outweighs a quarantine record, where a writer that was taken over left both.
        if pair in self.committed and pair in self._own:
            return self._read(dataroot.record(self.job, *pair), UnitRecord)
        if pair in self.committed:
            return self._rows[pair][0]
        if pair in self.quarantined:
            return self._read(dataroot.quarantine(self.job, *pair), QuarantineRecord)
        return None

    def _read(self, path: str, kind: type[Record]) -> Record | None:
        """The record at a path; None for one that cannot be read, which is noted, or is gone since the listing."""
        try:
            return _read(self.storage, path, kind)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.unreadable[path] = str(error)
            return None


def _records(storage: Storage, folder: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Key and provenance key, and path, of every record in a folder; files with other names are none."""
    for file in storage.list(folder, ".json"):
        if keys := dataroot.keys_of_record(file.path):
            yield keys, file.path


def _read(storage: Storage, path: str, kind: type[Record]) -> Record:
    """The record at a path; raises `ValueError` unless it is one, of the unit that the path names."""
    name = storage.describe(path)
    record = kind.from_json(storage.read(path, RECORD_BYTES, "record"), name)
    place = dataroot.record if kind is UnitRecord else dataroot.quarantine
    if path != place(record.job, record.key, record.pkey):
        raise ValueError(f"{name} is the record of another unit, {record.job} {record.key}")
    return record


def quarantined(storage: Storage) -> list[QuarantineRecord]:
    """Every quarantine record of DATA that can be read, by job and key; others are named."""
    found = []
    for _, path in _records(storage, dataroot.QUARANTINE_FOLDER):
        try:
            found.append(_read(storage, path, QuarantineRecord))
        except ValueError as error:
            log.warning("%s; the next command of its job sets it aside and runs the unit again", one_line(str(error)))
    return found


def causes(records: Iterable[QuarantineRecord]) -> Counter[str]:
    """Cause → number of quarantined units."""
    return Counter(record.cause for record in records)


def release(storage: Storage, records: Iterable[QuarantineRecord], cause: str | None = None) -> list[QuarantineRecord]:
    """Take units out of quarantine, so that the next command tries them again.

    The old record moves to `released/`, so that no failure is forgotten.

    Args:
        storage: DATA, the data set's folder or bucket.
        records: Quarantine records that may be released.
        cause: Cause of those to release; None: all.

    Returns:
        Records of the released units.
    """
    released = []
    for record in records:
        if cause in (None, record.cause):
            path = dataroot.quarantine(record.job, record.key, record.pkey)
            # Copy first, delete then: a crash in between leaves the unit quarantined, with a second copy.
            number = 0
            while not storage.create(dataroot.released(record.job, record.key, record.pkey, number), record.to_json()):
                number += 1
            storage.delete(path)
            released.append(record)
    return released


@contextlib.contextmanager
def writer_lock(storage: Storage) -> Iterator[None]:
    """Make this process the only one that writes to DATA, and clear what killed writers left, before and after.

    It holds the lease of DATA (`talkinghead.files.lease`): who is taken over can write there no more.

    Raises:
        LockedError: Another process holds the lease.
        ValueError: A link lies where DATA is written, DATA's lease is none of ours, or the store has no conditional
            writes.
        OSError: DATA cannot be written.
    """
    with storage.held():
        if storage.local_root is not None:
            warn_of_owner(storage.local_root)
        # Nobody else has a write in progress, so every temporary file is a dead writer's, or of one who may write no
        # more.
        if leftovers := storage.sweep_temporary():
            log.info("removed %d unfinished files of an interrupted run", leftovers)
        yield
        # All units are done; what workers were writing when they were killed still lies here.
        if leftovers := storage.sweep_temporary():
            log.info("removed %d unfinished files of killed workers", leftovers)
