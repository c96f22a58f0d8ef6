"""What pages take in memory, also where a file's footer lies."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talkinghead.parquet_pages import RowGroup, row_groups


def test_real_tables() -> None:
    table = pa.table({
        "number": np.arange(30_000), "text": [f"text {k}" for k in range(30_000)],
        "few": pa.array(["a", None, "b"] * 10_000).dictionary_encode(), "flag": [True, False] * 15_000,
        "list": pa.array([["a", "b"], []] * 15_000),
    })  # fmt: skip
    for options in ({}, {"compression": "zstd"}, {"use_dictionary": False}, {"data_page_version": "2.0"}):
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=12_000, **options)
        groups = row_groups(sink.getvalue())
        assert [group.rows for group in groups] == [12_000, 12_000, 6_000]
        # Each column counts, and none much more than it takes.
        assert table.nbytes / 3 < sum(group.memory for group in groups) < 3 * table.nbytes
    sink = io.BytesIO()
    pq.write_table(table.slice(0, 0), sink)
    assert sum(group.rows for group in row_groups(sink.getvalue())) == 0


def encoded(value: int | list | dict) -> tuple[int, bytes]:
    """Type and bytes of a number, a list or a structure in Thrift's compact protocol."""
    if isinstance(value, int):
        return 6, varint((value << 1) ^ (value >> 63))
    if isinstance(value, list):
        kind = encoded(value[0])[0] if value else 12
        return 9, bytes([0xF0 | kind]) + varint(len(value)) + b"".join(encoded(item)[1] for item in value)
    fields = b"".join(
        bytes([encoded(item)[0]]) + varint(number << 1) + encoded(item)[1] for number, item in sorted(value.items())
    )
    return 12, fields + b"\0"


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def page(kind: int, unpacked: int, values: int, packed: int = 10) -> bytes:
    return encoded({1: kind, 2: unpacked, 3: packed, 5: {1: values, 2: 0}})[1] + bytes(max(0, packed))


def file_of(pages: bytes, rows: int = 100, **lies: int) -> bytes:
    """A file of one column of texts; `lies` replace what its footer says of it."""
    about = {"kind": 6, "values": rows, "unpacked": len(pages), "packed": len(pages), "place": 4} | lies
    column = dict(zip((1, 5, 6, 7, 9), about.values(), strict=True))
    footer = encoded({3: rows, 4: [{1: [{3: column}], 2: 0, 3: rows}]})[1]
    return b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def test_pages_count_whatever_the_footer_says() -> None:
    data = file_of(page(2, 1000, 5) + page(0, 2_000_000_000, 50) + page(3, 10, 50), unpacked=1)
    # The third page is of another kind, whose values stand elsewhere.
    assert row_groups(data) == [RowGroup(100, 1000 + 2_000_000_000 + 200)]
    assert row_groups(file_of(page(0, 10, 2**31 - 1)))[0].memory == 4 * (2**31 - 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file_of(page(0, 10, 5) + page(2, 10, 5)), "dictionary is not in the first page"),
        (file_of(page(0, -1, 5)), "negative size"),
        (file_of(page(0, 10, 5, packed=-1)), "negative size"),
        (file_of(page(0, 10, 5), kind=3), "neither numbers nor texts"),
        (file_of(page(0, 10, 5), packed=10**9), "outside the file"),
        (file_of(page(0, 10, 5), place=-100), "outside the file"),
        (file_of(encoded({1: 0, 2: 0, 3: 0})[1] * 200_000), "too many pages"),
        (file_of(b"", packed=1), "a page is damaged"),
        (file_of(b"\x1c" * 100), "nested too deeply"),
        (file_of(b"\x1f" * 100), "of no type"),
        (b"PAR1" + b"\0" * 20, "does not end like"),
        (b"", "does not end like"),
        (b"PAR1" + (1 << 31).to_bytes(4, "little") + b"PAR1", "does not end like"),
        (b"PAR1" + b"\x49\xfc" + (2).to_bytes(4, "little") + b"PAR1", "is damaged"),
    ],
)
def test_what_cannot_be(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        row_groups(data)


def test_a_footer_of_many_small_fields_is_given_up() -> None:
    many = encoded({3: 1, 4: [{3: 0}] * 600_000})[1]
    with pytest.raises(ValueError, match="too many fields"):
        row_groups(b"PAR1" + many + len(many).to_bytes(4, "little") + b"PAR1")


def test_random_bytes() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        footer = rng.randbytes(rng.randrange(200))
        try:
            row_groups(b"PAR1" + rng.randbytes(50) + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        except ValueError:
            continue
