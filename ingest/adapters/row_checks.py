"""Limits of what metadata may say about a clip, and the reading of its numbers.

Metadata come from the web. One line with an interval of 10^300 seconds must not end the ingest of all the others, nor
make a unit that runs for years. So every row is made and checked on its own, and what is wrong with it is a problem of
that row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from ingest.source_listing import Problem, Problems, shortened
from talkinghead.schema import CatalogRow

MOST_CLIPS = 200_000
"""Most clips of a data set that is read from metadata; CelebV-HQ, the largest, has 35,666."""
MOST_BAD_LINES = 200_000
"""Most lines that cannot be read, before the file is taken for another one."""
LONGEST_CLIP_S = 2 * 3600.0
"""Longest interval of a clip in seconds; the official ones have 1 to 500."""
LONGEST_VIDEO_S = 48 * 3600.0
"""Latest second of a video that an interval may name."""
LARGEST_SIDE_PX = 100_000
"""Largest width or height of a frame, and largest distance of a box from its corner, in pixels."""
LONGEST_URL = 2000
"""Most characters of an address."""
LONGEST_ATTRIBUTES = 1 << 16
"""Most characters of a clip's other labels as JSON; CelebV-HQ's have about 1,000."""
LONGEST_NAME = 1000
"""Most characters of any other text of a row."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,15}")
_Item = TypeVar("_Item")


def whole_number(text: str, what: str, least: int = -LARGEST_SIDE_PX, most: int = LARGEST_SIDE_PX) -> int:
    """A whole number in decimal digits; raises `ValueError` for anything else, and outside `least .. most`.

    Args:
        text: The number as the metadata has it.
        what: What it is, for the message.
        least: Smallest value.
        most: Largest value.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{what} is {shortened(text)!r}, not a whole number")
    if not least <= (value := int(text)) <= most:
        raise ValueError(f"{what} is {value}, must lie between {least} and {most}")
    return value


def decimal_number(value: object, what: str, least: float, most: float) -> float:
    """A finite number; raises `ValueError` for anything else, and outside `least .. most`.

    Args:
        value: The number as the metadata has it, a text or a number of JSON.
        what: What it is, for the message.
        least: Smallest value.
        most: Largest value.
    """
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (ValueError, TypeError, OverflowError):
        shown = repr(value[:80]) if isinstance(value, str) else type(value).__name__
        raise ValueError(f"{what} is no number that a video could have: {shown}") from None
    if not least <= number <= most:  # NaN too
        raise ValueError(f"{what} is {number:g}, must lie between {least:g} and {most:g}")
    return number


def check_interval(start_s: float, end_s: float) -> None:
    """Raise `ValueError` unless an interval is part of a video, and not so long that cutting it would take days."""
    if not (0 <= start_s < end_s <= LONGEST_VIDEO_S):  # NaN too
        raise ValueError(f"the interval {start_s:g}–{end_s:g} s is no part of a video")
    if end_s - start_s > LONGEST_CLIP_S:
        raise ValueError(f"the interval {start_s:g}–{end_s:g} s is longer than {LONGEST_CLIP_S:g} s")


def collect_rows(
    items: Iterable[_Item],
    make: Callable[[_Item], CatalogRow],
    place: Callable[[_Item], tuple[str, int | None]],
    problems: Problems,
) -> list[CatalogRow]:
    """Rows of clips, each made and checked on its own; what is wrong with one is added to `problems`.

    Args:
        items: The clips as the metadata lists them.
        make: Function from a clip to its row; may raise `ValueError`.
        place: Function from a clip to the file and the line that list it.
        problems: List that is added to.

    Raises:
        ValueError: There are too many clips.
    """
    rows: list[CatalogRow] = []
    for item in items:
        file, line = place(item)
        try:
            row = make(item)
            check_row(row)
        except (ValueError, OverflowError, RecursionError) as error:
            problems.append(Problem(file=file, line=line, message=str(error)))
            continue
        if len(rows) == MOST_CLIPS:
            raise ValueError(f"{shortened(file)}: the metadata list more than {MOST_CLIPS:,} clips")
        rows.append(row)
    return rows


def check_row(row: CatalogRow) -> None:
    """Raise `ValueError` for a row with values that no video has."""
    if row.start_s is not None or row.end_s is not None:
        start_s = row.start_s or 0.0
        check_interval(start_s, start_s + 1 if row.end_s is None else row.end_s)
    # Sizes in pixels, or shares of the frame.
    for side in (row.box_width, row.box_height):
        if side is not None:
            decimal_number(side, "the frame's width or height", 1, LARGEST_SIDE_PX)
    if row.box is not None:
        x0, y0, x1, y1 = (decimal_number(v, "the box", -LARGEST_SIDE_PX, LARGEST_SIDE_PX) for v in row.box)
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"the box {x0:g} {y0:g} {x1:g} {y1:g} is empty")
    if row.frame_fps is not None:
        decimal_number(row.frame_fps, "the frame rate", 1, 1000)
    # Texts, which go into every sample.
    for what, text, most in (
        ("the address", row.url or "", LONGEST_URL),
        ("the labels", row.attributes, LONGEST_ATTRIBUTES),
        ("the name of the video", row.source_id, LONGEST_NAME),
        ("the name of the person", row.person or "", LONGEST_NAME),
        ("the split group", row.split_group, LONGEST_NAME),
    ):
        if len(text) > most:
            raise ValueError(f"{what} has {len(text):,} characters, may have {most:,}")
        if not text.isprintable():
            raise ValueError(f"{what} has characters that cannot be printed: {text[:80]!r}")
