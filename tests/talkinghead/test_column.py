"""Columns as a shard stores them: round trips within the stated error, and forms that are refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.column import (
    LARGEST,
    MISSING,
    Column,
    blank_rows,
    decode_column,
    encode_column,
    is_blank,
)

FLOAT, HALF, SHORT = np.dtype("<f4"), np.dtype("<f2"), np.dtype("<i2")

COLUMNS = (
    Column("steps", (3,), "cm", SHORT, 1 / 1024),
    Column("half", (2, 4), "x", HALF, rows=2),
    Column("flag", (), "0 or 1", np.dtype("i1"), blank=-1),
    Column("codes", (None,), "code", np.dtype("<i4"), rows="clip", blank=-1),
    Column("switch", (), "on", np.dtype("?")),
)


def values_of(column: Column, num_frames: int) -> np.ndarray:
    shape = (column.num_rows(num_frames), *(2 if size is None else size for size in column.shape))
    draw = np.random.default_rng(num_frames)
    if column.step or column.stored.kind == "f":
        return draw.normal(0, 5, shape)
    return draw.integers(0, 2, shape).astype(column.stored)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
@pytest.mark.parametrize("num_frames", [0, 1, 7])
def test_values_come_back_within_the_stated_error(column: Column, num_frames: int) -> None:
    values = values_of(column, num_frames)
    back = decode_column(column, encode_column(column, values))
    assert len(back) == (1 if column.rows == "clip" else column.rows * num_frames)
    if values.dtype.kind == "b":
        assert np.array_equal(back, values)
    else:
        assert (np.abs(back.astype(float) - values) <= column.rounding(values) * 1.001).all()
    assert is_blank(column, values).tolist() == [False] * len(values), "also without a row"


@pytest.mark.parametrize("column", COLUMNS[:4], ids=lambda column: column.name)
def test_rows_without_a_value_stay_so(column: Column) -> None:
    sizes = tuple(2 if size is None else size for size in column.shape)
    blank = blank_rows(column, 3, sizes)
    back = decode_column(column, encode_column(column, blank))
    assert is_blank(column, blank).all() and is_blank(column, back).all() and back.shape == (3, *sizes)


def test_a_flag_without_a_blank_has_none() -> None:
    with pytest.raises(ValueError, match="switch has no value for rows without a face"):
        blank_rows(COLUMNS[4], 3, ())
    assert not is_blank(COLUMNS[4], np.zeros(3, bool)).any()


def test_the_largest_step_is_stored_and_the_next_refused() -> None:
    column = COLUMNS[0]
    for sign in (1, -1):
        edge = np.full((1, 3), sign * LARGEST / 1024)
        assert np.array_equal(decode_column(column, encode_column(column, edge)), edge)
        with pytest.raises(ValueError, match=r"steps holds 32, beyond ±32 cm"):
            encode_column(column, edge + sign / 1024)
    assert MISSING < -LARGEST, "a number of its own"


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_the_form_survives_json(column: Column) -> None:
    back = Column.from_json(json.loads(json.dumps(column.to_json())))
    assert back == column


WRONG: dict[str, Any] = {
    "name": ["../mesh", "a.b", "", 3, None],
    "shape": [[0], [-1], [True], ["3"], [1.5], "33", 3, [2**31], [1] * 9],
    "stored": [">i2", "O", "V8", "<c8", "<f16", "<M8[s]", "i2,i2", "(3,)<i2", "", 5, None, ["a"], {"a": 1}],
    "step": [0.0, -1.0, float("nan"), float("inf"), 1, "1", True],
    "rows": [0, -1, 1001, True, "frame", 1.0, None, [1]],
    "blank": [1.5, "x", True, -(2**40), 7],
    "unit": [3, None],
}


@pytest.mark.parametrize("field", WRONG)
def test_forms_that_describe_no_column_are_refused(field: str) -> None:
    """`DATASET.json` may be a stranger's."""
    for value in WRONG[field]:
        with pytest.raises(ValueError, match="describes no column"):
            Column.from_json(COLUMNS[0].to_json() | {field: value})


@pytest.mark.parametrize("more", [{"loaded": "abc"}, {"optional": 1}, {"further": 0}])
def test_a_form_with_other_fields_is_refused(more: dict[str, Any]) -> None:
    form = COLUMNS[0].to_json()
    for wrong in (form | more, {name: value for name, value in form.items() if name != "unit"}, [], None, "x"):
        with pytest.raises(ValueError, match="describes no column"):
            Column.from_json(wrong)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([field.name for field in dataclasses.fields(Column)]),
)
def test_any_form_is_a_column_or_a_value_error(value: Any, field: str) -> None:
    for form in (value, COLUMNS[0].to_json() | {field: value}, COLUMNS[3].to_json() | {field: value}):
        try:
            Column.from_json(form)
        except ValueError as error:
            assert "describes no column" in str(error)


def test_a_blank_fits_its_type() -> None:
    with pytest.raises(ValueError, match="uint8 cannot hold -1, the blank of x"):
        Column("x", (), "", np.dtype("u1"), blank=-1)
    with pytest.raises(ValueError, match="needs no blank"):
        Column("x", (), "", FLOAT, blank=0)
    with pytest.raises(ValueError, match="cannot be stored as >f4"):
        Column("x", (), "", np.dtype(">f4"))
