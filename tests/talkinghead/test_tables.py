"""Parquet tables of strangers: what they ask for is bounded by their size, and damage is one line."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talkinghead.tables import SMALL_BYTES, TableError, read_table
from tests.support.limited_call import call_limited

READ = """
from pathlib import Path
from talkinghead.tables import read_table
def call(path):
    return read_table(Path(path).read_bytes(), "file", lambda schema: None).num_rows
"""


def stored(table: pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def repeated(text: str, rows: int, first: str = "") -> pa.Array:
    """One text, then another that is stored once and read `rows` times."""
    places = np.ones(rows + 1, np.int8)
    places[0] = 0
    return pa.DictionaryArray.from_arrays(pa.array(places), pa.array([first, text]))


def as_lists(values: pa.Array, length: int) -> pa.Array:
    """Lists of `length` values each, after an empty one."""
    return pa.ListArray.from_arrays(pa.array([0, *range(0, len(values) + 1, length)], pa.int32()), values)


# Without the Arrow schema, as other programs write it, a text is no dictionary when it is read.
BOMBS: dict[str, Callable[[], bytes]] = {
    "a text many times": lambda: stored(pa.table({"a": repeated("x" * 1000, 5_000_000)}), store_schema=False),
    "a long text after a short one": lambda: stored(
        pa.table({"a": repeated("x" * 10**6, 10_000, first="a")}), store_schema=False
    ),
    "texts in lists": lambda: stored(
        pa.table({"a": as_lists(repeated("x" * 1000, 4_999_999), 100_000)}), store_schema=False
    ),
    "numbers": lambda: stored(pa.table({f"n{k}": np.zeros(20_000_000) for k in range(2)})),
    "nothing": lambda: stored(pa.table({"a": pa.nulls(100_000_000, pa.string())}), row_group_size=1 << 30),
    "one long text": lambda: stored(
        pa.table({"a": ["z" * 300_000_000]}), compression="zstd", use_dictionary=False, write_statistics=False
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_cannot_ask_for_much(bomb: str, tmp_path: Path) -> None:
    data = BOMBS[bomb]()
    assert len(data) < 2 << 20
    (tmp_path / "table").write_bytes(data)
    called = call_limited(READ, tmp_path / "table")
    assert called.said.startswith("error: file is no readable table: its ") and "bytes of memory" in called.said
    assert called.memory < 700 << 20


def test_tables_come_back_as_they_were_written() -> None:
    texts = pa.array(["one", None, "zwölf"] * 1000)
    table = pa.table({
        "text": texts, "few": texts.dictionary_encode(), "number": pa.array(range(3000), pa.int64()),
        "list": pa.array([["a", "b"], [], None] * 1000, pa.list_(pa.string())), "flag": pa.array([True] * 3000),
        "fixed": pa.array([[1.0, 2.0, 3.0, 4.0], None, [0.0] * 4] * 1000, pa.list_(pa.float64(), 4)),
    }).replace_schema_metadata({"ours": "yes"})  # fmt: skip
    for options in ({}, {"row_group_size": 700, "compression": "zstd"}, {"use_dictionary": False}):
        found = read_table(stored(table, **options), "file", lambda schema: None)
        assert found.equals(table) and found.schema.metadata == table.schema.metadata
    assert read_table(stored(table.slice(0, 0)), "file", lambda schema: None).num_rows == 0


def test_a_few_long_texts_among_many_short_ones() -> None:
    """The longest text times the rows would be too much, the texts themselves are not."""
    texts = ["x" * 10_000, *(f"text {number}" for number in range(SMALL_BYTES // 10_000 + 1000)), "y" * 5_000]
    table = pa.table({"text": texts})
    assert read_table(stored(table), "file", lambda schema: None).equals(table)


def test_the_schema_is_checked_before_anything_is_read() -> None:
    def check(schema: pa.Schema) -> None:
        raise ValueError(f"columns {schema.names} are not ours")

    with pytest.raises(ValueError, match=r"columns \['a'\] are not ours") as raised:
        read_table(stored(pa.table({"a": [1]})), "file", check)
    assert not isinstance(raised.value, TableError)


def test_texts_that_are_none() -> None:
    data = stored(pa.table({"a": ["abcdef"]}), compression="none")
    with pytest.raises(TableError, match=r"^file is no readable table: .*UTF8"):
        read_table(data.replace(b"abcdef", b"abc\xff\xfe\xfd"), "file", lambda schema: None)


def test_damage_is_one_line() -> None:
    rows = 500
    table = pa.table({"text": [f"t{k}" for k in range(rows)], "number": list(range(rows)), "list": [["a"]] * rows})
    whole = stored(table, row_group_size=200, compression="zstd")
    rng = random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            # Half of them in the footer, which steers everything.
            data[rng.randrange(len(data)) if rng.random() < 0.5 else len(data) - 1 - rng.randrange(700)] ^= (
                1 << rng.randrange(8)
            )
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            read_table(bytes(data), "file", lambda schema: None)
        except TableError as error:
            assert "\n" not in str(error) and len(str(error)) < 400


def test_threads_of_arrow_hold_no_memory_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may let go of it when Python is ending, which would end the process by SIGABRT."""
    sources: list[pa.Buffer] = []
    reader = pa.BufferReader

    def noting(source: pa.Buffer) -> object:
        sources.append(pa.py_buffer(source))
        return reader(source)

    monkeypatch.setattr(pa, "BufferReader", noting)
    data = stored(pa.table({"text": ["a", "b"], "number": [1, 2]}))
    read_table(data, "it", lambda schema: None)
    assert len(sources) == 2
    assert pa.py_buffer(data).address not in [source.address for source in sources]
