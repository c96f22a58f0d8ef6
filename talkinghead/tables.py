"""Parquet tables that may be a stranger's: the memory that reading one takes is bounded before it is read.

A table of a kilobyte can ask for terabytes: its values may be stored once and repeated a billion times, or compressed
ten thousandfold. What its columns take follows from the headers of its pages and from their longest texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from talkinghead.parquet_pages import RowGroup, row_groups

SMALL_BYTES = 256 << 20
"""Bytes of memory that any table may take."""
GROWTH = 16
"""Times its own size that a larger file may take in memory; tables of real clips take about twice."""

_FOOTER_BYTES = 64 << 20  # largest text in the footer: a catalog's lists the files of SOURCE that no clip uses
_FOOTER_ITEMS = 1024  # most columns and most row groups: each takes about a kilobyte, however little it takes stored
_BATCH_BYTES = 64 << 20  # texts that are read at once


class TableError(ValueError):
    """Error about a file that is no readable Parquet table, or asks for too much; the message names the file."""


def read_table(data: bytes, name: str, check: Callable[[pa.Schema], object]) -> pa.Table:
    """Table from the content of a Parquet file.

    Args:
        data: Content of the file.
        name: Name of the file, for messages.
        check: Function that raises `ValueError` unless the schema, with its metadata, is the expected one. Columns may
            hold numbers, texts, and lists of texts.

    Returns:
        The table; its texts are valid UTF-8.

    Raises:
        TableError: It is no Parquet file, is damaged, or would take far more memory than it has bytes.
        ValueError: What `check` raises.
    """
    try:
        owned = _owned(data)
        file = _open(owned)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable(name, error) from None
    check(schema)
    try:
        table = _read(data, owned, file, max(SMALL_BYTES, GROWTH * len(data)))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable(name, error) from None
    return table


def _owned(data: bytes) -> pa.Buffer:
    """Copy of bytes in memory of Arrow's own.

    Threads of Arrow read, and may be the last to let go of what they have read from. Memory of Python they could free
    only with its lock; a thread that asks for the lock when Python is ending takes the whole process with it
    ("terminate called without an active exception", github.com/apache/arrow/issues/45017).
    """
    sink = pa.BufferOutputStream()
    sink.write(data)
    return sink.getvalue()


def _open(data: pa.Buffer, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(data),
        pre_buffer=False,  # the data is in memory already
        thrift_string_size_limit=_FOOTER_BYTES,
        thrift_container_size_limit=_FOOTER_ITEMS,
        arrow_extensions_enabled=False,
        **options,
    )


def _unreadable(name: str, error: BaseException) -> TableError:
    reason = " ".join(str(error).split())[:300]
    return TableError(f"{name} is no readable table: {reason or type(error).__name__}")


def _read(data: bytes, owned: pa.Buffer, file: pq.ParquetFile, limit: int) -> pa.Table:
    """All rows; `ValueError` when they take more than `limit` bytes."""
    # What the columns take where no text is repeated.
    groups = row_groups(data)
    if (total := sum(group.memory for group in groups)) > limit:
        rows = sum(group.rows for group in groups)
        raise ValueError(f"its {rows:,} rows take {total:,} bytes of memory, it may take {limit:,}")
    # Read as a dictionary, a column takes little however often it repeats a text; some stay one.
    stay = {field.name for field in file.schema_arrow if pa.types.is_dictionary(field.type)}
    columns = [file.schema.column(number) for number in range(len(file.schema))]
    names = [column.path for column in columns if column.physical_type == "BYTE_ARRAY" and column.path not in stay]
    texts = _open(owned, metadata=file.metadata, read_dictionary=names)
    longest = [
        sum(_longest_text(texts, number, name, group.rows, limit) for name in names)
        for number, group in enumerate(groups)
    ]
    # The fast way, unless a few long texts leave open whether all the others are as long.
    if total + sum(group.rows * length for group, length in zip(groups, longest, strict=True)) <= limit:
        return file.read()
    return pa.Table.from_batches(_batches(file, groups, longest, limit), file.schema_arrow)


def _batches(file: pq.ParquetFile, groups: list[RowGroup], longest: list[int], limit: int) -> Iterator[pa.RecordBatch]:
    """All rows, few at a time where texts are long; `ValueError` when they take more than `limit` bytes."""
    taken = 0
    for number, (group, length) in enumerate(zip(groups, longest, strict=True)):
        at_once = max(1, min(group.rows, _BATCH_BYTES // max(1, length)))
        for batch in file.iter_batches(at_once, row_groups=[number]):
            taken += batch.nbytes
            if taken > limit:
                raise ValueError(f"its texts take more than {limit:,} bytes of memory")
            yield batch


def _longest_text(texts: pq.ParquetFile, group: int, column: str, rows: int, limit: int) -> int:
    """Bytes of the longest text that a row group's column may repeat.

    Args:
        texts: The file, its texts read as dictionaries.
        group: Number of the row group.
        column: Path of the column.
        rows: Rows of the row group.
        limit: Bytes that a column of lists may take; 0 is returned for one that takes less.
    """
    # The dictionary comes whole with the first row. A first list may be empty, so that all lists are read.
    is_list = "." in column
    batch = next(texts.iter_batches(max(1, rows) if is_list else 1, row_groups=[group], columns=[column]), None)
    if batch is None:
        return 0
    values = batch.column(0).values if is_list else batch.column(0)
    longest = pc.call_function("max", [pc.call_function("binary_length", [values.dictionary])]).as_py() or 0
    if is_list and longest * len(values) > limit:
        raise ValueError(f"its texts in lists take more than {limit:,} bytes of memory")
    return 0 if is_list else longest
