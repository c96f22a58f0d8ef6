"""Equal inputs: files of equal bytes, of which clips are cut in the same way, are one input and not several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

from ingest.source_listing import display_path
from talkinghead.schema import DATASETS, CatalogRow

REASON = "duplicate"
"""Reason of the rejection of an input that is there already."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """A catalog row and the content of its source."""

    row: CatalogRow
    content: str | None
    """SHA-256 of the source; None: it could not be read, and equals nothing."""


def name_of(row: CatalogRow) -> str:
    """Name of an input for people: data set and file."""
    return f"{row.dataset}:{display_path(row.source or row.source_id)}"


def find_duplicates(inputs: Iterable[Input], packed: Set[str]) -> dict[str, CatalogRow]:
    """Find the inputs that are there more than once.

    Which of them stays is a function of names: the first data set in the order of `DATASETS` (one with metadata before
    a plain folder), then the first path. What is packed stays in any case.

    Args:
        inputs: Inputs of all data sets of DATA, in any order.
        packed: Keys of clips that are in a shard.

    Returns:
        Key of each input that does not stay → row of the one that does.
    """
    equal: dict[object, list[CatalogRow]] = defaultdict(list)
    for item in inputs:
        row = item.row
        if item.content is not None:
            part = (row.start_s, row.end_s, row.box, row.box_width, row.box_height, row.frame_fps)
            equal[item.content, part].append(row)
    found = {}
    for rows in equal.values():
        first, *others = sorted(rows, key=lambda row: _rank(row, packed))
        found.update({row.key: first for row in others if row.key not in packed})
    return found


def _rank(row: CatalogRow, packed: Set[str]) -> tuple[bool, int, str, str]:
    known: Mapping[str, int] = {name: number for number, name in enumerate(DATASETS)}
    return row.key not in packed, known.get(row.dataset, len(known)), row.source or "", row.key


def renamed(gone: Iterable[Input], here: Iterable[Input]) -> dict[str, CatalogRow]:
    """Find files that were renamed or moved, as when SOURCE is given one folder higher.

    Args:
        gone: Inputs whose source is no longer in SOURCE.
        here: Inputs of new names.

    Returns:
        Key of the new name → old row with the new file as its source.
    """
    # Several equal files of either kind are paired in the order of their names.
    new: dict[object, list[CatalogRow]] = defaultdict(list)
    for item in sorted(here, key=lambda item: item.row.source or ""):
        new[item.content, item.row.start_s, item.row.end_s].append(item.row)
    found = {}
    for item in sorted(gone, key=lambda item: item.row.source or ""):
        fitting = new[item.content, item.row.start_s, item.row.end_s]
        if item.content is not None and fitting:
            taken = fitting.pop(0)
            found[taken.key] = replace(item.row, source=taken.source)
    return found
