"""What has been done: commit records, quarantine records, and the one writer that may change them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from orchestration.units.records import QuarantineRecord, UnitRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage

log = logging.getLogger(__name__)


class Ledger:
    """Commit and quarantine records of one job, read once."""

    def __init__(self, storage: Storage, job: str) -> None:
        self.storage = storage
        self.job = job
        # A record is named by key and provenance key, so a listing tells what is done without opening a file.
        self.committed = {_names(file.path) for file in storage.list(dataroot.records(job), ".json")}
        self.quarantined = {_names(file.path) for file in storage.list(dataroot.quarantines(job), ".json")}

    def is_done(self, unit: Unit) -> bool:
        """Whether the unit needs no run: committed, or quarantined until somebody retries it."""
        return (unit.key, unit.pkey) in self.committed or (unit.key, unit.pkey) in self.quarantined

    def results(self, units: Iterable[tuple[str, str]]) -> dict[str, UnitRecord | QuarantineRecord | None]:
        """Per key of the given (key, provenance key) pairs: its record, or None while it is pending."""
        pairs = list(units)
        with ThreadPoolExecutor(16 if self.storage.local_root is None else 4) as pool:
            return {pair[0]: result for pair, result in zip(pairs, pool.map(self._result, pairs), strict=True)}

    def _result(self, pair: tuple[str, str]) -> UnitRecord | QuarantineRecord | None:
        if pair in self.committed:
            return UnitRecord.from_json(self.storage.read(dataroot.record(self.job, *pair)))
        if pair in self.quarantined:
            return QuarantineRecord.from_json(self.storage.read(dataroot.quarantine(self.job, *pair)))
        return None


def _names(path: str) -> tuple[str, str]:
    key, pkey, _ = path.rsplit("/", 1)[1].split(".")
    return key, pkey


def quarantined(storage: Storage) -> list[QuarantineRecord]:
    """Every quarantine record of DATA, by job and key."""
    files = storage.list(dataroot.QUARANTINE_FOLDER, ".json")
    return [QuarantineRecord.from_json(storage.read(file.path)) for file in files]


def causes(records: Iterable[QuarantineRecord]) -> Counter[str]:
    """How many units each cause holds in quarantine."""
    return Counter(record.cause for record in records)


def release(storage: Storage, records: Iterable[QuarantineRecord], cause: str | None = None) -> list[QuarantineRecord]:
    """Take units out of quarantine (all of `records`, or those of one cause) so that the next run tries them again.

    The old record moves to `released/`, so that no failure is forgotten.
    """
    released = []
    for record in records:
        if cause in (None, record.cause):
            path = dataroot.quarantine(record.job, record.key, record.pkey)
            number = 0
            while not storage.create(dataroot.released(record.job, record.key, record.pkey, number), record.to_json()):
                number += 1
            storage.delete(path)
            released.append(record)
    return released


@contextlib.contextmanager
def writer_lock(storage: Storage) -> Iterator[None]:
    """Be the only job that writes to DATA on this machine; clear what killed writers left.

    The lock belongs to the process: the kernel drops it when the process dies. Object stores have no lock; there
    every write is whole and its content a function of its name, so two runs waste work but break nothing.
    """
    if storage.local_root is None:
        storage.check_writable()
        yield
        return
    try:
        storage.local_root.mkdir(parents=True, exist_ok=True)
        handle = (storage.local_root / ".lock").open("a")
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {storage.uri}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another job is writing to {storage.uri}; wait for it or stop it") from None
        storage.check_writable()
        if leftovers := storage.sweep_temporary():
            log.info("removed %d unfinished files of an interrupted run", leftovers)
        yield
