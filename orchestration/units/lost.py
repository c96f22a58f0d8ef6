"""Units that count as done although their output is lost: they are found and run again.

Where they are packed, their samples must come out as they were: a worker compares them before they count.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from orchestration.units.ledger import Ledger
from orchestration.units.records import UnitRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot

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
    # The record of a segment stays while a unit of it is packed: its other units are then made again on their own.
    staying = {ledger.segment_of((unit.key, unit.pkey)) for unit in units if unit.is_packed} - {""}
    kept = {}
    for unit in units:
        pair = (unit.key, unit.pkey)
        if (record := lost.get(unit.key)) is None or pair not in ledger.committed:  # it went with its segment
            continue
        why = f"{record.file} is gone"
        if unit.is_packed or ledger.segment_of(pair) in staying:
            kept[unit.key] = record
            log.warning("%s: it is made again", why)
        else:
            ledger.set_aside(ledger.path_of(pair), why, "its unit is run again")
    return kept


def refuse_changed(messages: Sequence[str]) -> None:
    """Raise `ValueError` where packed units came out otherwise than before.

    Args:
        messages: What is said of each of them.
    """
    if messages:
        raise ValueError(
            f"{messages[0]}{f', and {len(messages) - 1} more' if messages[1:] else ''} (of other releases of libraries,"
            " on another kind of processor, or with other settings or metadata), so what was packed of it cannot be"
            " made again: put the shard back from a copy, or make the data set anew in another DATA"
        )
