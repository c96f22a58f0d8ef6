"""Index of a data set: one row per sample with its place in the shards, its scores, and whether training uses it.

A Parquet table per annotation version, with flat columns so that a million rows open in a moment: each member has
`<member>_offset` and `<member>_size`, each score `score_<name>`, each label `label_<name>`. Where samples have notes,
`notes` has a list of texts for each. The members come from the packed samples, so that later column sets need no change
here. A null is what a sample does not have.
"""

from __future__ import annotations

import functools
import io
import json
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.index_format import (
    DICTIONARIES,
    DICTIONARY,
    LABEL,
    LISTS,
    METADATA,
    MOST_LABELS,
    MOST_NOTES,
    NOTES,
    NUMBERS,
    OPTIONAL,
    SCORE,
    TEXTS,
    Archive,
    Members,
    check_label,
    check_note,
    check_values,
    member_column,
    read_header,
    value_names,
)
from shards.manifest import AnnotationEntry
from talkinghead import dataroot
from talkinghead.derived import ANNOTATION
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_bytes
from talkinghead.schema import SCHEMA_VERSION, SPLITS, Member, SampleIndex, check_name, check_version
from talkinghead.tables import read_table

MOST_BYTES = 4 << 30
"""Largest index that is read: that of some ten million samples."""

_ABSENT = -1  # offset and size, in memory, of a member that a sample does not have; null in the file
_ROW_GROUP = 1 << 17  # rows per Parquet row group, and rows that `Index.rows` turns into objects at once


class Index:
    """The rows of one annotation version in shard order, held as columns.

    Args:
        table: Table as `write_index` writes it.
        version: Annotation version.
        members: Archive → suffixes of its members.
    """

    def __init__(self, table: pa.Table, version: str, members: Members) -> None:
        self.version = version
        self.members: dict[Archive, tuple[str, ...]] = {
            "media": tuple(members["media"]),
            "annotation": tuple(members["annotation"]),
        }
        # One chunk for each column: rows are found at once, and NumPy can share the memory of numbers.
        self.table = table.combine_chunks()
        self._arrays: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    @functools.cached_property
    def score_names(self) -> list[str]:
        """Names of the clip scores."""
        return value_names(self.table.column_names, SCORE, self.members)

    @functools.cached_property
    def label_names(self) -> list[str]:
        """Names of the clip labels."""
        return value_names(self.table.column_names, LABEL, self.members)

    def text(self, name: str, row: int) -> str | None:
        """Value of a text column in one row."""
        return self.table.column(name)[row].as_py()

    def numbers(self, name: str) -> np.ndarray:
        """A numeric or bool column `[N]`; absent members are -1, absent scores NaN. The array is shared: read only."""
        if name not in self._arrays:
            column = self.table.column(name)
            if column.null_count:
                # Before the array is made: NumPy has no nulls, and Arrow would turn integers with nulls into floats.
                column = column.fill_null(float("nan") if pa.types.is_floating(column.type) else _ABSENT)
            self._arrays[name] = column.to_numpy()
        return self._arrays[name]

    def texts(self, name: str) -> np.ndarray:
        """A text column `[N]` of Python strings: slow for millions of rows, while `text` reads a single row."""
        column = self.table.column(name)
        # Where a column of few different texts has nulls, Arrow would give one of the texts for them.
        return (column.cast(pa.string()) if column.null_count else column).to_numpy()

    def label(self, name: str) -> np.ndarray:
        """Values of a label `[N]`, Python strings; None where a sample does not have it."""
        return self.texts(f"{LABEL}{name}")

    def equals(self, name: str, *values: str) -> np.ndarray:
        """Rows in which a text column has one of these values, `[N]` bool."""
        column = self.table.column(name)
        parts = [_equals(chunk, values) for chunk in column.chunks]
        return np.concatenate(parts) if parts else np.empty(0, bool)

    def distinct(self, name: str, rows: np.ndarray | None = None) -> list[str]:
        """Different values of a text column, sorted, without absent ones.

        Args:
            name: Name of the column.
            rows: Rows that count, `[N]` bool; None: all.
        """
        column = self.table.column(name)
        found = pc.call_function("unique", [column if rows is None else column.filter(pa.array(rows))])
        return sorted(value for value in found.to_pylist() if value is not None)

    def is_absent(self, name: str) -> np.ndarray:
        """Rows that have no value in a column, `[N]` bool."""
        return self.table.column(name).is_null().to_numpy()

    def shard_rows(self, shard: int) -> slice:
        """Rows of one shard; they are contiguous because the index is in shard order."""
        # The column of shard numbers never falls, so two binary searches find the borders.
        first, stop = np.searchsorted(self.numbers("shard"), [shard, shard + 1])
        return slice(int(first), int(stop))

    def has_member(self, suffix: str) -> np.ndarray:
        """Samples that have the member, `[N]` bool."""
        return self.numbers(f"{member_column(suffix)}_offset") != _ABSENT

    def member(self, suffix: str, row: int) -> Member | None:
        """Place of a sample's member in its shard; None when the sample has no such member."""
        stem = member_column(suffix)
        offset = int(self.numbers(f"{stem}_offset")[row])
        if offset == _ABSENT:
            return None
        return Member(suffix=suffix, offset=offset, size=int(self.numbers(f"{stem}_size")[row]))

    def row(self, row: int) -> SampleIndex:
        """One row as an object."""
        return self._object(self.table.take([row]).to_pylist()[0])

    def rows(self, which: slice = slice(None)) -> Iterator[SampleIndex]:
        """Rows as objects, in order."""
        first, stop, _ = which.indices(len(self))
        for position in range(first, stop, _ROW_GROUP):
            part = self.table.slice(position, min(_ROW_GROUP, stop - position)).to_pylist()
            yield from map(self._object, part)

    def _object(self, values: dict[str, Any]) -> SampleIndex:
        def members(archive: Archive) -> list[Member]:
            stems = {suffix: member_column(suffix) for suffix in self.members[archive]}
            found = [
                Member(suffix=suffix, offset=values[f"{stem}_offset"], size=values[f"{stem}_size"])
                for suffix, stem in stems.items()
                if values[f"{stem}_offset"] is not None
            ]
            return sorted(found, key=lambda member: member.offset)  # as they lie in the tar

        plain = {name: values[name] for name in (*TEXTS, *NUMBERS, "keep", "reason_score")}
        scores = {name: values[f"{SCORE}{name}"] for name in self.score_names}
        labels = {name: value for name in self.label_names if (value := values[f"{LABEL}{name}"]) is not None}
        return SampleIndex(
            **plain,
            media=members("media"),
            annotation=members("annotation"),
            scores=scores,
            labels=labels,
            notes=values.get(NOTES) or [],
        )


def _equals(chunk: pa.Array, values: tuple[str, ...]) -> np.ndarray:
    options = pc.SetLookupOptions(pa.array(values, pa.string()))
    # Few different texts are compared once each, not row by row.
    if isinstance(chunk, pa.DictionaryArray):
        found = pc.call_function("is_in", [chunk.dictionary], options).take(chunk.indices)
    else:
        found = pc.call_function("is_in", [chunk], options)
    # A null (an optional text that is absent) equals nothing, but Arrow answers null.
    return pc.fill_null(found, False).to_numpy(zero_copy_only=False)


def build_index(version: str, rows: Iterable[SampleIndex]) -> Index:
    """Index of rows in shard order; they may come from a generator and are not kept.

    Args:
        version: Annotation version.
        rows: Rows in shard order; ordinals count from 0 in every shard.

    Raises:
        ValueError: Rows out of shard order, a key twice, an unknown split, a kept sample with a reason, a dropped
            one without, a label or note that an index cannot hold, or two columns with one name.
    """
    # Columns grow in compact arrays: a million rows as Python objects would take gigabytes.
    texts: dict[str, list[str | None]] = {name: [] for name in TEXTS}
    numbers = {name: array("q") for name in (*NUMBERS, "keep")}
    floats: dict[str, array[float]] = {"reason_score": array("d")}
    labels: dict[str, list[str | None]] = {}
    notes: list[list[str] | None] = []
    offsets: dict[Archive, dict[str, tuple[array[int], array[int]]]] = {"media": {}, "annotation": {}}
    last, count = (-1, -1), 0
    for row in rows:
        last = _check_order(row, last)
        for name, values in texts.items():
            values.append(getattr(row, name))
        for name, values in numbers.items():
            values.append(int(getattr(row, name)))
        # A score, label or member that occurs first in this row is absent in all rows before it.
        for name in row.scores.keys() - {n.removeprefix(SCORE) for n in floats}:
            floats[f"{SCORE}{name}"] = array("d", [float("nan")] * count)
        for name, values in floats.items():
            value = row.reason_score if name == "reason_score" else row.scores.get(name.removeprefix(SCORE))
            values.append(float("nan") if value is None else value)
        _append_labels(labels, row.labels, count)
        notes.append(_checked_notes(row) if row.notes else None)
        _append_members(offsets["media"], row.media, count)
        _append_members(offsets["annotation"], row.annotation, count)
        count += 1
    if len(set(texts["key"])) != count:
        raise ValueError(f"index of {version}: a key occurs twice")
    return _assemble(check_version(version), texts, numbers, floats, labels, notes, offsets)


def _check_order(row: SampleIndex, last: tuple[int, int]) -> tuple[int, int]:
    """(shard, ordinal) of the row after `last`; `ValueError` when it does not follow, or contradicts itself."""
    here = (row.shard, row.ordinal)
    following = (last[0], last[1] + 1)
    # Either the next ordinal of this shard, or the first of a later one.
    if here != following and not (row.shard > last[0] and row.ordinal == 0):
        raise ValueError(f"{row.key} at shard {row.shard}, ordinal {row.ordinal} does not follow {last}")
    if row.split not in SPLITS:
        raise ValueError(f"{row.key}: split {row.split!r} is none of {', '.join(SPLITS)}")
    if row.keep == (row.reason is not None):
        raise ValueError(
            f"{row.key}: a kept sample has no reason, a dropped one has one (keep {row.keep}, {row.reason})"
        )
    return here


def _append_labels(columns: dict[str, list[str | None]], labels: dict[str, str], count: int) -> None:
    """Append the labels of row number `count` to the columns, by name."""
    for name in labels.keys() - columns.keys():
        columns[check_name(name, "label")] = [None] * count
        if len(columns) > MOST_LABELS:
            raise ValueError(f"the samples have more than {MOST_LABELS} labels")
    for name, values in columns.items():
        value = labels.get(name)
        values.append(None if value is None else check_label(value, name))


def _checked_notes(row: SampleIndex) -> list[str]:
    if len(row.notes) > MOST_NOTES:
        raise ValueError(f"{row.key} has more than {MOST_NOTES} notes")
    return [check_note(note) for note in row.notes]


def _append_members(columns: dict[str, tuple[array[int], array[int]]], members: list[Member], count: int) -> None:
    """Append the members of row number `count` to the columns of offsets and sizes, by suffix."""
    for member in members:
        if member.suffix not in columns:
            columns[member.suffix] = (array("q", [_ABSENT]) * count, array("q", [_ABSENT]) * count)
        offset, size = columns[member.suffix]
        offset.append(member.offset)
        size.append(member.size)
    # Columns of members that this row lacks.
    for offset, size in columns.values():
        if len(offset) == count:
            offset.append(_ABSENT)
            size.append(_ABSENT)


def _assemble(
    version: str,
    texts: dict[str, list[str | None]],
    numbers: dict[str, array[int]],
    floats: dict[str, array[float]],
    labels: dict[str, list[str | None]],
    notes: list[list[str] | None],
    offsets: dict[Archive, dict[str, tuple[array[int], array[int]]]],
) -> Index:
    """Arrow table of the collected columns: texts, numbers, members, scores, labels, notes, in this order."""
    columns: dict[str, pa.Array] = {}
    for name in TEXTS:
        columns[name] = pa.array(texts[name], pa.string()).cast(DICTIONARY if name in DICTIONARIES else pa.string())
    for name in NUMBERS:
        columns[name] = pa.array(np.asarray(numbers[name]), pa.int32())
    columns["keep"] = pa.array(np.asarray(numbers["keep"]).astype(bool))
    for suffixes in offsets.values():
        # Sorted, so that the columns do not depend on the sample that has a member first: equal rows, equal bytes.
        for suffix, pair in sorted(suffixes.items()):
            for what, values in zip(("offset", "size"), pair, strict=True):
                name = f"{member_column(suffix)}_{what}"
                if name in columns:
                    raise ValueError(f"two members would have the index column {name}; one is {suffix}")
                array_ = np.asarray(values)
                columns[name] = pa.array(array_, pa.int64(), mask=array_ == _ABSENT)
    scored = {name: pa.array(np.asarray(values), pa.float64(), from_pandas=True) for name, values in floats.items()}
    labelled = {f"{LABEL}{name}": pa.array(values, pa.string()).cast(DICTIONARY) for name, values in labels.items()}
    for name, values in (*sorted(scored.items()), *sorted(labelled.items())):  # of scores, NaN has become null
        if name in columns:
            raise ValueError(f"a member and a score or label would have the index column {name}")
        columns[name] = values
    # Only where there are any: an index without notes has the bytes that it had before there were notes.
    if any(notes):
        columns[NOTES] = pa.array(notes, LISTS)
    # The header in the schema's metadata keeps the suffixes, which the column names do not give back.
    members: dict[Archive, list[str]] = {archive: sorted(suffixes) for archive, suffixes in offsets.items()}
    header = {"schema_version": SCHEMA_VERSION, "version": version, "members": members}
    schema = pa.schema(
        [
            # Scores, labels and notes may always be null, so that the schema does not depend on what is missing.
            pa.field(
                name,
                values.type,
                nullable=name in (*OPTIONAL, NOTES) or values.null_count > 0 or name.startswith((SCORE, LABEL)),
            )
            for name, values in columns.items()
        ],
        {METADATA: json.dumps(header, sort_keys=True)},
    )
    return Index(pa.Table.from_arrays(list(columns.values()), schema=schema), version, members)


def write_index(storage: Storage, index: Index) -> tuple[str, str]:
    """Write the index under a name that contains its hash; equal rows give equal bytes.

    Returns:
        Path relative to DATA, and SHA-256: both go into `DATASET.json`.
    """
    # Into memory first: the name of the file holds the hash of its bytes.
    sink = io.BytesIO()
    pq.write_table(
        index.table,
        sink,
        compression="zstd",
        row_group_size=_ROW_GROUP,
    )
    sha256 = hash_bytes(sink.getvalue())
    path = dataroot.index(index.version, sha256)
    storage.write(path, sink.getvalue())
    return path, sha256


def read_index(storage: Storage, entry: AnnotationEntry) -> Index:
    """Index of an annotation version that `DATASET.json` names.

    Raises:
        FileNotFoundError: The file is gone.
        ValueError: The file is no index, has another hash than the entry, or another schema version.
    """
    path = storage.describe(entry.index)
    try:
        data = storage.read(entry.index, MOST_BYTES, "index")
    except FileNotFoundError as error:
        again = _again(storage, entry)
        raise FileNotFoundError(f"{path} is gone, the index that DATASET.json names: {again}") from error
    # At the same time: both take as long, and neither needs the interpreter's lock.
    with ThreadPoolExecutor(1) as hasher:
        sha256 = hasher.submit(hash_bytes, data)
        try:
            index = parse_index(data, entry.version, path)
        except ValueError:
            _check_hash(sha256.result(), entry, path, storage)  # says more
            raise
        _check_hash(sha256.result(), entry, path, storage)
    return index


def _check_hash(sha256: str, entry: AnnotationEntry, path: str, storage: Storage) -> None:
    if sha256 != entry.index_sha256:
        again = _again(storage, entry)
        raise ValueError(f"{path} is not the index that DATASET.json names: it is damaged; {again}")


def _again(storage: Storage, entry: AnnotationEntry) -> str:
    """What makes the index of a version again."""
    command = f"make shards ANN={entry.version}" if entry.kind == ANNOTATION else entry.command
    return f"{command} DATA={storage.uri} makes it again"


def parse_index(data: bytes, version: str, name: str) -> Index:
    """Index of `version` from the content of its file; `name` names the file in messages.

    Raises:
        ValueError: The content is no index, has another version or schema version, or holds what no index of ours does.
    """
    table = read_table(data, name, lambda schema: read_header(schema, version, name))
    index = Index(table, version, read_header(table.schema, version, name))
    check_values(index.table, index.members, name)
    return index
