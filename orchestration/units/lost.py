"""Units that count as done although their output is lost: they are found, run again, and compared with what was."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from orchestration.units.ledger import Ledger
from orchestration.units.records import UnitRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_file

log = logging.getLogger(__name__)


def lost_outputs(ledger: Ledger, units: Sequence[Unit]) -> dict[str, UnitRecord]:
    """Find the committed units whose output is gone though it is needed, and set records aside that do not count.

    Returns:
        Key → commit record that stays, of those that are packed and so must come out with the same bytes.
    """
    storage, job = ledger.storage, ledger.job
    needed = ledger.set_aside_unreadable(units)
    there = {file.path for file in storage.list(dataroot.units(job))} if needed else set()
    lost = {
        key: record
        for key, record in needed.items()
        if record.file not in there and (record.file is None or not storage.exists(record.file))
    }
    kept = {}
    for unit in units:
        if (record := lost.get(unit.key)) is None:
            continue
        why = f"{record.file} is gone"
        if unit.is_packed:
            kept[unit.key] = record
            log.warning("%s: it is made again", why)
        else:
            ledger.set_aside(dataroot.record(job, unit.key, unit.pkey), why, "its unit is run again")
    return kept


def check_same(storage: Storage, lost: Mapping[str, UnitRecord]) -> None:
    """Raise `ValueError` unless outputs that were made again have the bytes of their records."""
    changed = []
    for record in lost.values():
        if record.file is not None and storage.exists(record.file):
            with storage.local_copy(record.file) as path:
                if hash_file(path) != record.file_sha256:
                    changed.append(record.file)
    # What is not the same must not be taken for it by the next command.
    for file in changed:
        storage.delete(file)
    if changed:
        raise ValueError(
            f"{changed[0]}{f' and {len(changed) - 1} more' if changed[1:] else ''} came out with other bytes than"
            " before (of other releases of libraries, on another kind of processor), so what was packed of it cannot be"
            " made again: put the shard back from a copy, or make the data set anew in another DATA"
        )
