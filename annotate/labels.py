"""Labels of a clip, such as its emotion: from a table that the user writes, or from the data set's own metadata.

A new label needs no new ingest, only `make derive COLUMNS=labels`. Readers select by its text (`--config.label
emotion=happy`), networks take its number: `labels` is int32 `[1, K]`, one number for each of the K names in sorted
order, `label_code(text)`, or -1 where a clip has no such label. `labels.json` holds names and texts.

The table is a CSV file in UTF-8 with commas. Its first column says by what clips are found, the others are labels:

    person,emotion,level
    M003,happy,3
    M003,sad,
    W011,,1

Here the second line of M003 is refused, because it gives the same person another emotion; W011 has no emotion.
Blanks around a value do not count, nor do empty lines.

A value of the metadata that is a text is taken as it is, any other as its JSON: `true`, `3`, `["happy","sad"]`. Null
and the empty text are no label.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.column import Column
from talkinghead.derived import (
    MOST_LABELS,
    ColumnError,
    ColumnSample,
    Derived,
    DerivedColumn,
    Fit,
    Provenance,
    check_label,
    label_code,
)
from talkinghead.files.foreign import read_limited
from talkinghead.provenance import canonical_json, hash_bytes
from talkinghead.schema import ClipInfo, check_name

MATCHED = ("key", "clip_key", "person", "split_group", "source_id", "source", "dataset")
"""Facts about a clip by which a table can name it: the heading of the table's first column."""
NO_LABEL = -1
"""Code of a label that a clip does not have."""
MOST_BYTES, MOST_ROWS = 64 << 20, 1_000_000
"""Largest table, in bytes and in lines with labels; every worker holds it in memory."""

Values = tuple[str | None, ...]
"""Labels of a line of the table, None where it has none."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Where the labels come from: a table, the metadata, or both."""

    csv: str | None = None
    """CSV file whose first column is headed `key`, `clip_key`, `person`, `split_group`, `source_id`, `source` or
    `dataset`, and every other column with the name of a label. Empty places are no label."""
    attributes: tuple[str, ...] = ()
    """Labels from the metadata of the data set, which ingest keeps as the attributes of a clip: NAME, or NAME=PATH
    where the value lies deeper (`emotion=emotion.labels`) or tells whether a list holds a text
    (`young=appearance.young`: true or false)."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.paths()]
        for name in names:
            check_name(name, "label")
        if len(set(names)) != len(names):
            raise ValueError(f"--labels.attributes names a label twice: {', '.join(names)}")
        if len(names) > MOST_LABELS:
            raise ValueError(f"--labels.attributes has {len(names)} labels, may have {MOST_LABELS}")

    def paths(self) -> list[tuple[str, list[str]]]:
        """Name of each label from the metadata, and the steps to its value."""
        parts = [text.partition("=") for text in self.attributes]
        return [(name, (path or name).split(".")) for name, _, path in parts]


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Content of the CSV file."""

    matched: str
    """Fact about a clip that the first column names, one of `MATCHED`."""
    names: tuple[str, ...]
    """Names of the labels, in the order of the columns."""
    rows: Mapping[str, Values]
    """Fact → labels of the clips that have it."""
    sha256: str
    """Hash of the file."""


def read_table(path: Path) -> LabelTable:
    """Read a CSV file of labels.

    Raises:
        ValueError: It is no such table; the message names the line and says what to do.
        OSError: It cannot be read.
    """
    data = read_limited(path, MOST_BYTES, "table of labels")
    lines = _lines(data, path)
    _, heading = next(lines, (1, []))
    matched, names = _checked_heading(heading, path)
    rows: dict[str, Values] = {}
    shared: dict[Values, Values] = {}  # few labels differ, and a table may have a million lines
    for number, line in lines:
        place = f"{path}, line {number}"
        if len(line) != len(heading):
            raise ValueError(
                f"{place}: {len(line)} values, the heading has {len(heading)}: put texts with commas in quotes"
            )
        fact, *values = line
        if not fact:
            raise ValueError(f"{place}: the {matched} is empty")
        try:
            for name, value in zip(names, values, strict=True):
                check_label(name, value or "none")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        labels: Values = tuple(value or None for value in values)
        if rows.setdefault(fact, shared.setdefault(labels, labels)) != labels:
            raise ValueError(f"{place}: {matched} {fact!r} has other labels in a line before: keep one of them")
        if len(rows) > MOST_ROWS:
            raise ValueError(f"{path} has more than {MOST_ROWS:,} lines: make several versions with a table each")
    if not rows:
        raise ValueError(f"{path} has no line with labels after its heading")
    return LabelTable(matched=matched, names=names, rows=rows, sha256=hash_bytes(data))


def _lines(data: bytes, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and values of each line that is not empty, without blanks around the values."""
    # Programs for tables write a byte order mark. Decoded bit by bit: a whole text takes up to four times the memory.
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            line = [value.strip() for value in next(reader)]
        except StopIteration:
            return
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8: save it as CSV with UTF-8 and commas") from None
        except csv.Error as error:
            raise ValueError(f"{path}, line {number}: it is no CSV ({error})") from None
        if any(line):
            yield number, line


def _checked_heading(heading: list[str], path: Path) -> tuple[str, tuple[str, ...]]:
    """What the first column names, and the names of the labels; `ValueError` for a heading that is none."""
    if len(heading) < 2:
        for separator, word in ((";", "semicolons"), ("\t", "tabs")):
            if any(separator in value for value in heading):
                raise ValueError(f"{path} is separated by {word}: save it with commas")
    if not heading or heading[0] not in MATCHED:
        found = heading[0][:80] if heading else ""
        raise ValueError(
            f"{path}: the first column is headed {found!r}, must be {', '.join(MATCHED[:-1])} or {MATCHED[-1]}"
        )
    names = tuple(heading[1:])
    if not 1 <= len(names) <= MOST_LABELS:
        raise ValueError(f"{path} has {len(names)} columns of labels, must have 1 to {MOST_LABELS}")
    try:
        for name in names:
            check_name(name, "the label")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two columns have the same heading")
    return heading[0], names


# --- the column -------------------------------------------------------------------------------------------------------

_looked_at: dict[str, LabelTable] = {}
"""Table whose provenance was asked for last, by its path, so that a worker takes the labels of what was hashed."""


def table_provenance(settings: LabelSettings) -> Provenance:
    """Name and SHA-256 of the table, which is read anew.

    Raises:
        ValueError: There is neither a table nor a label from the metadata, the file is no table of labels, or both have
            a label of the same name.
    """
    _looked_at.clear()
    if settings.csv is None:
        if not settings.attributes:
            raise ValueError("there are no labels: give --labels.csv FILE, --labels.attributes NAME, or both")
        return {}
    try:
        table = read_table(Path(settings.csv))
    except FileNotFoundError:
        raise ValueError(f"there is no file {settings.csv} with labels") from None
    if twice := {name for name, _ in settings.paths()} & set(table.names):
        raise ValueError(
            f"the label {min(twice)} is in {settings.csv} and in --labels.attributes: rename one (NAME=PATH)"
        )
    if (count := len(table.names) + len(settings.attributes)) > MOST_LABELS:
        raise ValueError(f"there are {count} labels, there may be {MOST_LABELS}")
    _looked_at[settings.csv] = table
    return {"csv": {"name": Path(settings.csv).name, "sha256": table.sha256, "rows": len(table.rows)}}


def open_labels(settings: LabelSettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
    """Function that looks up the labels of a sample.

    Raises:
        ValueError: The table cannot be read.
    """
    del fits, device
    if settings.csv is not None and settings.csv not in _looked_at:
        table_provenance(settings)
    table = None if settings.csv is None else _looked_at[settings.csv]
    paths = settings.paths()
    names = sorted([*(table.names if table else ()), *(name for name, _ in paths)])

    def look_up(sample: ColumnSample) -> Derived:
        labels = {name: label_of(sample.info, name, path) for name, path in paths}
        if table is not None:
            fact = getattr(sample.info, table.matched)
            labels |= zip(table.names, table.rows.get(fact, (None,) * len(table.names)), strict=True)
        known = {name: text for name in names if (text := labels[name]) is not None}
        codes = [label_code(known[name]) if name in known else NO_LABEL for name in names]
        return Derived(
            arrays={"labels": np.array([codes], np.int32)},
            scores={"labelled": len(known) / len(names)},
            labels=known,
            about={"names": names, "labels": known},
        )

    return look_up


def label_of(info: ClipInfo, name: str, path: list[str]) -> str | None:
    """Text of a value in the metadata of a clip; None where there is none.

    Args:
        info: Facts about the clip.
        name: Name of the label.
        path: Steps to the value: names of fields, at last maybe a text that a list holds or not.

    Raises:
        ColumnError: The text is too long for a label, or cannot be printed.
    """
    value: Any = info.attributes
    for step in path:
        match value:
            case Mapping():
                value = value.get(step)
            case list():
                value = step in value
            case _:
                value = None
    try:
        text = value if value is None or isinstance(value, str) else canonical_json(value).decode()
    except (ValueError, RecursionError) as error:  # NaN, an absurd number, or nested too deeply
        raise ColumnError("names", f"the label {name} has no text: {error}") from None
    if not text:
        return None
    try:
        check_label(name, text)
    except ValueError as error:
        raise ColumnError("names", f"{error}; the metadata has {text[:80]!r}") from None
    return text


LABELS = DerivedColumn(
    name="labels",
    version=1,
    arrays=(
        Column("labels", (None,), "code of each label", np.dtype("<i4"), rows="clip", blank=NO_LABEL, optional=True),
    ),
    gives_labels=True,
    scores=("labelled",),  # share of the labels that the clip has, 0 .. 1
    needs=("json",),
    settings=LabelSettings,
    provenance=table_provenance,
    open=open_labels,
    frame_seconds=lambda settings: 0.01,
)
