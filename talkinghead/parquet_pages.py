"""What the pages of a Parquet file take in memory, from their own headers, before any of them is decoded.

The file's footer says so too, but may lie; and pyarrow's access to a damaged footer ends the process by an exception
that nobody can catch. Format: github.com/apache/parquet-format (`parquet.thrift`), in Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MAGIC = b"PAR1"
_MOST_FIELDS = 1_000_000  # of a footer
_MOST_PAGES = 100_000  # and one for each 256 bytes of the file: real ones have thousands
_DEPTH = 8  # of structures in structures; the format has five
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8, 6: 4}  # number of a physical type → bytes of a value, a text's offset
_DICTIONARY_PAGE = 2

Struct = dict[int, Any]
"""Number of a field → its value."""


@dataclass(frozen=True)
class RowGroup:
    """Rows that are stored together."""

    rows: int
    memory: int
    """Bytes that its columns take at most, if no text is repeated."""


def row_groups(data: bytes) -> list[RowGroup]:
    """Row groups of a Parquet file.

    Raises:
        ValueError: The file is damaged, or holds something else than numbers and texts.
    """
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    if data[-4:] != _MAGIC or start < len(_MAGIC):
        raise ValueError("it does not end like a Parquet file")
    try:
        footer = _Reader(data, start, _MOST_FIELDS).struct()
        pages = iter(range(_MOST_PAGES + len(data) // 256))
        return [
            RowGroup(group[3], sum(_chunk_memory(data, chunk[3], pages) for chunk in group[1])) for group in footer[4]
        ]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("its footer or a page is damaged") from error


def _chunk_memory(data: bytes, chunk: Struct, pages: Iterator[int]) -> int:
    """Bytes that a column of one row group takes; `pages` counts the pages that may still be looked at."""
    width = _VALUE_BYTES.get(chunk[1])
    if width is None:
        raise ValueError("a column holds neither numbers nor texts")
    if not chunk[5]:  # no values: it may have no place
        return 0
    first = min(chunk[9], chunk.get(11) or chunk[9])  # of data pages, and of the dictionary
    position, end = first, first + chunk[7]
    if not 0 <= first <= end <= len(data):
        raise ValueError("a column lies outside the file")
    memory = 0
    while position < end:
        if next(pages, None) is None:
            raise ValueError("it has too many pages")
        reader = _Reader(data, position, 1000)
        page = reader.struct()
        if page[1] == _DICTIONARY_PAGE and position > first:
            raise ValueError("a dictionary is not in the first page")
        # A dictionary's values are counted where they are used.
        about = page.get(5) or page.get(8) or {}
        unpacked, packed, values = page[2], page[3], about.get(1, 0)
        if min(unpacked, packed, values) < 0:
            raise ValueError("a page has a negative size")
        memory += max(unpacked, values * width)
        position = reader.position + packed
    return memory


class _Reader:
    """Reader of structures in Thrift's compact protocol.

    Args:
        data: Bytes that hold them.
        position: Place of the next one.
        most: Number of values that may be read.
    """

    def __init__(self, data: bytes, position: int, most: int) -> None:
        self.data, self.position, self.left = data, position, most

    def struct(self, depth: int = 0) -> Struct:
        """Fields of a structure by number; texts are left out."""
        if depth > _DEPTH:
            raise ValueError("its structures are nested too deeply")
        fields: Struct = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has too many fields")
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):  # integers of 16, 32 and 64 bits
            return self._number()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind in (9, 10):  # list, set
            head = self._byte()
            size = head >> 4 if head >> 4 != 15 else self._varint()
            inner = 3 if head & 15 in (1, 2) else head & 15  # in a list a bool takes a byte
            return [self._value(inner, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("a field is of no type of this format")

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number is too long")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise IndexError
