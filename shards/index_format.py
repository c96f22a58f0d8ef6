"""Form of an index table: its header, its columns and what they may hold. A table that is read may be a stranger's.

Everything that other code relies on is checked here, once, for all rows together: what is a file name later (keys,
suffixes) can only be one, and every place in a shard is one that a shard can have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talkinghead.config import from_json, shown
from talkinghead.files.foreign import parse_json
from talkinghead.schema import KEY_PATTERN, SCHEMA_VERSION, SPLITS, check_name, check_suffix

Archive = Literal["media", "annotation"]
Members = Mapping[Archive, Sequence[str]]
"""Archive → suffixes of its members."""

METADATA = b"talkinghead"
"""Name of the header in the schema's metadata."""
TEXTS = ("key", "clip_key", "dataset", "split", "split_group", "person", "licence", "reason")
DICTIONARIES = ("dataset", "split", "licence", "reason")
"""Columns of few different texts: stored as numbers and a table of the texts."""
NUMBERS = ("shard", "ordinal", "num_frames")
OPTIONAL = ("person", "reason", "reason_score")
"""Columns that may be null, next to those of scores and members."""
SCORE = "score_"
"""Beginning of the columns of scores."""
LABEL = "label_"
"""Beginning of the columns of labels, which are of few different texts, too."""
DICTIONARY = pa.dictionary(pa.int32(), pa.string())
"""Type of the columns of few different texts."""
NOTES = "notes"
"""Column of the samples' notes; an index of samples without any does not have it."""
LISTS = pa.list_(pa.field("element", pa.string()))
"""Type of the column of notes; the name is Parquet's, so that a table that was read gives the same bytes again."""
MOST_LABELS = 64
"""Largest number of labels in an index."""
MOST_NOTES = 64
"""Largest number of notes on a sample."""

_MOST_SHARDS = 10**6  # their names have six digits
_MOST_BYTES = 1 << 48  # of a shard
_MOST_LICENCE = 1000  # characters
_MOST_LABEL = 200  # characters of a label's value
_MOST_NOTE = 500  # characters of a note
_BLOCK = 1 << 18  # bytes of text that are checked at once, so that they stay in the processor's cache


@dataclass(frozen=True, kw_only=True)
class Header:
    """Header of an index."""

    schema_version: int
    version: str
    """Annotation version."""
    members: dict[str, list[str]]
    """Archive → suffixes of its members, which the names of the columns do not give back."""


def member_column(suffix: str) -> str:
    """Column stem of a member: `landmarks.npy` → `landmarks`, `ann.json` → `ann_json`, `mp4` → `mp4`."""
    return suffix.removesuffix(".npy").replace(".", "_")


def value_names(columns: Sequence[str], kind: str, members: Members) -> list[str]:
    """Names of the scores or labels of an index.

    Args:
        columns: Names of the index's columns.
        kind: `SCORE` or `LABEL`.
        members: Archive → suffixes of its members: `score_x.npy` has columns that begin like those of a score.
    """
    stems = [member_column(suffix) for suffixes in members.values() for suffix in suffixes]
    places = {f"{stem}_{what}" for stem in stems if stem.startswith(kind) for what in ("offset", "size")}
    return [name.removeprefix(kind) for name in columns if name.startswith(kind) and name not in places]


def check_label(value: str, name: str) -> str:
    """Return a label's value; raises `ValueError` when an index cannot hold it."""
    if not value or len(value) > _MOST_LABEL or not value.isprintable():
        raise ValueError(f"label {name} is {shown(value)}, must have 1 to {_MOST_LABEL} printable characters")
    return value


def check_note(value: str) -> str:
    """Return a note; raises `ValueError` when an index cannot hold it."""
    if not value or len(value) > _MOST_NOTE or not value.isprintable():
        raise ValueError(f"a note is {shown(value)}, must have 1 to {_MOST_NOTE} printable characters")
    return value


def read_header(schema: pa.Schema, version: str, name: str) -> dict[Archive, list[str]]:
    """Members of an index, from the header in its schema.

    Args:
        schema: Schema of the table, with its metadata.
        version: Annotation version that it should be the index of.
        name: Name of the file, for messages.

    Raises:
        ValueError: It is no index, or of another version or schema version, or has other columns.
    """
    # Any Parquet table can be read: ours has a header in the metadata of its schema.
    metadata = (schema.metadata or {}).get(METADATA)
    if metadata is None:
        raise ValueError(f"{name} is a Parquet table, but not an index of samples")
    header = parse_json(metadata, f"the header of {name}")
    # The schema first: another one may have other fields.
    found = header.get("schema_version") if isinstance(header, dict) else None
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{name} has schema {shown(found)}, this code reads {SCHEMA_VERSION}:"
            " use the talkinghead release that wrote it, or build the index again with make shards"
        )
    try:
        about = from_json(Header, header)
        if about.version != version:
            raise ValueError(f"it is the index of {shown(about.version)}, not of {version}")
        if about.members.keys() != {"media", "annotation"}:
            raise ValueError(f"it has members in {shown(sorted(about.members))}")
        members: dict[Archive, list[str]] = {archive: about.members[archive] for archive in ("media", "annotation")}
        _check_columns(schema, members)
    except ValueError as error:
        raise ValueError(f"{name} is no index that this code reads: {error}") from error
    return members


def _check_columns(schema: pa.Schema, members: Members) -> None:
    expected: dict[str, pa.DataType] = {name: DICTIONARY if name in DICTIONARIES else pa.string() for name in TEXTS}
    expected |= dict.fromkeys(NUMBERS, pa.int32()) | {"keep": pa.bool_(), "reason_score": pa.float64()}
    for suffix in (suffix for suffixes in members.values() for suffix in suffixes):
        for what in ("offset", "size"):
            column = f"{member_column(check_suffix(suffix))}_{what}"
            if column in expected:
                raise ValueError(f"two members would have the column {column}; one is {suffix}")
            expected[column] = pa.int64()
    scores, labels = (value_names(schema.names, kind, members) for kind in (SCORE, LABEL))
    if len(labels) > MOST_LABELS:
        raise ValueError(f"it has {len(labels)} labels, may have {MOST_LABELS}")
    expected |= {SCORE + check_name(name, "score"): pa.float64() for name in scores}
    expected |= {LABEL + check_name(name, "label"): DICTIONARY for name in labels}
    expected |= {NOTES: LISTS} if NOTES in schema.names else {}
    for column, kind in zip(schema.names, schema.types, strict=True):
        if expected.pop(column, None) != kind:
            raise ValueError(f"column {shown(column)} is {kind}, or occurs twice, or is none of an index")
    if expected:
        raise ValueError(f"it has no column {', '.join(sorted(expected)[:5])}")


def check_values(table: pa.Table, members: Members, name: str) -> None:
    """Raise `ValueError` when a value of an index cannot be: a name that is none, or a place that no shard can have.

    Args:
        table: Table whose columns `read_header` has checked.
        members: Archive → suffixes of its members.
        name: Name of the file, for messages.
    """
    try:
        _check_texts(table)
        for label in value_names(table.column_names, LABEL, members):
            for chunk in table.column(f"{LABEL}{label}").chunks:
                _check_short(chunk.dictionary, _MOST_LABEL, functools.partial(check_label, name=label))
        if NOTES in table.column_names:
            _check_notes(table.column(NOTES))
        _check_numbers(table, members)
    except ValueError as error:
        raise ValueError(f"{name} is damaged, or not ours: {error}") from error


def _check_texts(table: pa.Table) -> None:
    for column in TEXTS:
        if column not in OPTIONAL and table.column(column).null_count:
            raise ValueError(f"a row has no {column}")
    for column in ("key", "clip_key"):
        for chunk in table.column(column).chunks:
            if not _are_keys(chunk):
                raise ValueError(f"{column} {shown(_first_wrong(chunk))} has other characters than A-Z a-z 0-9 _ -")
    for column in ("dataset", "reason", "split"):
        for chunk in table.column(column).chunks:
            for text in chunk.dictionary.to_pylist():
                if check_name(text, column) not in SPLITS and column == "split":
                    raise ValueError(f"split {text!r} is none of {', '.join(SPLITS)}")
    for chunk in table.column("licence").chunks:
        for text in chunk.dictionary.to_pylist():
            if len(text) > _MOST_LICENCE:  # it is written out for each row
                raise ValueError(f"licence {shown(text)} has {len(text):,} characters, may have {_MOST_LICENCE:,}")


def _check_numbers(table: pa.Table, members: Members) -> None:
    if table.column("keep").null_count or any(table.column(column).null_count for column in NUMBERS):
        raise ValueError(f"a row has no {', '.join(NUMBERS)} or keep")
    if (np.diff(table.column("shard").to_numpy()) < 0).any():
        raise ValueError("its rows are not in the order of the shards")
    # Places lie in a shard, as far as can be said without it.
    stems = [member_column(suffix) for suffixes in members.values() for suffix in suffixes]
    for column, least, most in (
        ("shard", 0, _MOST_SHARDS - 1),
        ("ordinal", 0, None),
        ("num_frames", 1, None),
        *((f"{stem}_{what}", 0, _MOST_BYTES) for stem in stems for what in ("offset", "size")),
    ):
        found = pc.call_function("min_max", [table.column(column)]).as_py()
        for value in (found["min"], found["max"]):
            if value is not None and (value < least or (most is not None and value > most)):
                raise ValueError(f"{column} is {value} in a row")
    # Both are null, or none.
    for stem in stems:
        offset, size = (table.column(f"{stem}_{what}") for what in ("offset", "size"))
        if (offset.null_count or size.null_count) and not offset.is_null().equals(size.is_null()):
            raise ValueError(f"{stem} has an offset without a size, or the reverse")


def _check_notes(column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        most = pc.call_function("max", [pc.call_function("list_value_length", [chunk])]).as_py() or 0
        if most > MOST_NOTES:
            raise ValueError(f"a row has {most:,} notes, may have {MOST_NOTES}")
        # Thousands of clips have the same notes: each text is looked at once.
        _check_short(pc.call_function("unique", [chunk.flatten()]), _MOST_NOTE, check_note)


def _check_short(values: pa.StringArray, most: int, check: Callable[[str], object]) -> None:
    """Have `check` raise its error for the first text that is empty, long or not printable."""
    if not len(values):
        return
    lengths = pc.call_function("min_max", [pc.call_function("utf8_length", [values])]).as_py()
    fitting = not values.null_count and lengths["min"] >= 1 and lengths["max"] <= most
    # The texts together, since there may be as many as rows: whether all are printable is seen at once.
    if not fitting or not bytes(_bytes_of(values)).decode().isprintable():
        for value in values.to_pylist():
            check(value or "")


def _bytes_of(texts: pa.StringArray) -> np.ndarray:
    """The bytes of texts, which lie one after the other in one buffer."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]


def _are_keys(chunk: pa.StringArray) -> bool:
    """Whether all texts are keys: a regular expression takes six times as long."""
    lengths = pc.call_function("min_max", [pc.call_function("binary_length", [chunk])]).as_py()
    if not len(chunk):
        return True
    if lengths["min"] < 1 or lengths["max"] > 90:
        return False
    text = _bytes_of(chunk)
    for start in range(0, len(text), _BLOCK):
        byte = text[start : start + _BLOCK]
        # Numbers below zero wrap round to large ones.
        letters, digits = (byte | 32) - ord("a") < 26, byte - ord("0") < 10
        if not (letters | digits | (byte == ord("_")) | (byte == ord("-"))).all():
            return False
    return True


def _first_wrong(chunk: pa.StringArray) -> str:
    return next(text for text in (value.as_py() for value in chunk) if not KEY_PATTERN.fullmatch(text))
