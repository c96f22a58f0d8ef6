"""Released clips: files that were cut out of their video already, as data sets are handed on.

They are found by the names of clips (`<name>_<n>.mp4`). Where such a file is a row's source, the interval and the box
of the metadata do not apply again: the file is taken as a whole and cropped around the face, which leaves one that was
cropped before about as it is (`--ingest recrop=false` keeps all frames whole). That the file is the clip is known by
its name; its length is compared with what the metadata list, and a difference is reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ingest.extent import Extent
from ingest.source_listing import Problem, display_path
from talkinghead.schema import CatalogRow

NOTE = "released clip: taken as a whole, cropped around the face"
"""Note of a row whose source is a released clip."""
LISTED = "listed_interval"
"""Attribute of such a row: start and end in the whole video, seconds, as the metadata list them."""
TOLERANCE_S = 1.0
"""Difference of lengths from which on it is reported: cutting tools begin and end at key frames, or whole seconds."""


def is_released(row: CatalogRow) -> bool:
    """Whether a row's source is a released clip."""
    return row.source is not None and NOTE in row.notes


def check_lengths(rows: Iterable[CatalogRow], extents: Mapping[str, Extent]) -> list[Problem]:
    """Compare the lengths of sources with what the metadata list.

    Args:
        rows: Rows of a catalog.
        extents: Source → its length; sources of unknown length are left out, or have length 0.

    Returns:
        A problem for each kind of contradiction, with the first file that shows it.
    """
    other_length: list[tuple[str, float, float]] = []
    beyond: list[tuple[str, float, float]] = []
    for row in rows:
        extent = extents.get(row.source) if row.source is not None else None
        if row.source is None or extent is None or not extent.seconds:
            continue
        length = extent.seconds
        if is_released(row):
            listed = json.loads(row.attributes).get(LISTED)
            if listed and abs(length - (listed[1] - listed[0])) > TOLERANCE_S:
                other_length.append((row.source, length, listed[1] - listed[0]))
        elif row.start_s is not None and row.start_s >= length:
            beyond.append((row.source, length, row.start_s))
    problems = []
    for found, message in (
        (other_length, "is {:.1f} s long, while the metadata list {:.1f} s for this clip"),
        (
            beyond,
            "is {:.1f} s long, and its clip begins at {:.1f} s: a clip that was cut out must have its clip's name",
        ),
    ):
        if found:
            file, *numbers = min(found)
            more = f" (and so on, for {len(found):,} clips)" if len(found) > 1 else ""
            problems.append(Problem(file=display_path(file), message=message.format(*numbers) + more))
    return problems
