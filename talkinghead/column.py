"""A column: one array of a clip, with the form in which a shard stores it.

A column has a number of rows for each frame (usually one), or one row for the whole clip. In a shard it is an `.npy`
member. Two forms are compact: half precision, and integer steps of a fixed size with `MISSING` for NaN.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from talkinghead.config import shown
from talkinghead.npy import read_npy
from talkinghead.schema import check_name

MISSING = -32768
"""Value that means NaN in a column of integer steps."""
LARGEST = 32767
"""Largest number of steps in such a column."""

Rows = int | Literal["clip"]
"""Rows of a column: a number for each frame (1 at 25 Hz, 2 at 50 Hz), or one for the whole clip."""

_MOST_ROWS = 1000  # for a frame
_MOST_AXES = 8  # of a row
_STORED = re.compile(r"[<|](b1|[iu][1248]|f[248])")  # what `read_npy` reads


@dataclass(frozen=True)
class Column:
    """One column of a clip; axis 0 is the row."""

    name: str
    shape: tuple[int | None, ...]
    """Shape of a row. None: a size that the settings decide, the same in all clips of a version."""
    unit: str
    stored: np.dtype
    step: float | None = None
    """Units for each integer step of a compact column."""
    rows: Rows = 1
    blank: int | None = None
    """Value of an integer column where there is none."""
    optional: bool = False
    """Whether a frame with a face may lack a value, too."""
    loaded: np.dtype | None = None
    """Type in memory of a column without steps; None: as it is stored. Steps become float32."""

    def __post_init__(self) -> None:
        check_name(self.name, "column")
        if self.rows != "clip" and not (type(self.rows) is int and 1 <= self.rows <= _MOST_ROWS):
            raise ValueError(f"{self.name} has {self.rows!r} rows for a frame")
        if not _STORED.fullmatch(self.stored.str) or (self.step is not None and self.stored != np.dtype("<i2")):
            raise ValueError(f"{self.name} cannot be stored as {self.stored}")
        if self.blank is not None:
            if self.step is not None or self.stored.kind not in "iu":
                raise ValueError(f"{self.name} is NaN where it has no value, and needs no blank")
            if not np.iinfo(self.stored).min <= self.blank <= np.iinfo(self.stored).max:
                raise ValueError(f"{self.stored} cannot hold {self.blank}, the blank of {self.name}")

    @property
    def member(self) -> str:
        """Suffix of the column's tar member."""
        return f"{self.name}.npy"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row; `ValueError` where the settings decide it."""
        if None in self.shape:
            raise ValueError(f"the settings decide the shape of {self.name}")
        return tuple(size for size in self.shape if size is not None)

    def num_rows(self, num_frames: int) -> int:
        """Rows of a clip with so many frames."""
        return 1 if self.rows == "clip" else self.rows * num_frames

    def row_bytes(self) -> int | None:
        """Bytes of a stored row; None where the settings decide its size."""
        return None if None in self.shape else self.stored.itemsize * math.prod(self.row_shape)

    def rounding(self, values: np.ndarray) -> np.ndarray:
        """Largest error that storing makes in each value: half a step, or half a unit in the last place of a float."""
        if self.step is not None:
            return np.full(values.shape, self.step / 2)
        if self.stored.kind != "f":
            return np.zeros(values.shape)
        about = np.finfo(self.stored)
        return np.maximum(np.abs(values) * float(about.eps) / 2, float(about.smallest_subnormal))

    def to_json(self) -> dict[str, Any]:
        """The form as a JSON object, which `DATASET.json` keeps, so that a reader needs no code of the column's."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "unit": self.unit,
            "stored": self.stored.str,
            "step": self.step,
            "rows": self.rows,
            "blank": self.blank,
        }

    @classmethod
    def from_json(cls, value: Any) -> Column:
        """Inverse of `to_json`, of a derived column. Raises `ValueError` for anything else."""
        try:
            form = {**value}
            if form.keys() != _FORM:
                raise ValueError(f"it has the fields {', '.join(sorted(map(shown, form))[:10])}")
            shape = tuple(form.pop("shape"))
            stored, step = np.dtype(form.pop("stored")), form.pop("step")
            if len(shape) > _MOST_AXES or any(
                not (size is None or (type(size) is int and 0 < size < 1 << 31)) for size in shape
            ):
                raise ValueError("its shape is wrong")
            if step is not None and not (isinstance(step, float) and 0 < step < math.inf):
                raise ValueError("its step is wrong")
            if not isinstance(form["unit"], str) or not (form["blank"] is None or type(form["blank"]) is int):
                raise ValueError("its unit or blank is wrong")
            return cls(shape=shape, stored=stored, step=step, **form)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it describes no column: {error}") from None


_FORM = {"name", "shape", "unit", "stored", "step", "rows", "blank"}  # fields of `Column.to_json`


def fits_shape(column: Column, shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape are the column's."""
    return len(shape) == len(column.shape) and all(
        wanted in (None, size) for wanted, size in zip(column.shape, shape, strict=True)
    )


def encode_column(column: Column, values: np.ndarray) -> bytes:
    """One column as the bytes of an `.npy` file (format 1.0, little endian, no pickle).

    Raises:
        ValueError: Wrong shape, or a value outside the compact column's range.
    """
    if not fits_shape(column, values.shape[1:]):
        shape = ", ".join("?" if size is None else str(size) for size in column.shape)
        raise ValueError(f"{column.name} has shape {values.shape}, must be [rows, {shape}]")
    stored = _quantise(column, values) if column.step else values.astype(column.stored)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(stored), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_column(column: Column, data: bytes | memoryview) -> np.ndarray:
    """Inverse of `encode_column`: NaN where a compact column has no value.

    Raises:
        ValueError: The bytes are no `.npy` file, or hold another dtype or shape than the column's.
    """
    return decode_rows(column, read_npy(data))


def decode_rows(column: Column, stored: np.ndarray) -> np.ndarray:
    """Rows of a column as they are stored, as `decode_column` gives them."""
    if not fits_shape(column, stored.shape[1:]) or stored.dtype != column.stored:
        raise ValueError(
            f"{column.name} is {stored.dtype}{list(stored.shape)}, expected {column.stored} of {column.shape}"
        )
    if column.step is None:
        return stored if column.loaded is None else stored.astype(column.loaded)
    values = stored.astype(np.float32) * np.float32(column.step)
    values[stored == MISSING] = np.nan
    return values


def _quantise(column: Column, values: np.ndarray) -> np.ndarray:
    """Values as integer steps of a compact column, `MISSING` for NaN."""
    assert column.step
    missing = np.isnan(values)
    steps = np.rint(np.where(missing, 0.0, values).astype(np.float64) / column.step)
    if np.abs(steps).max(initial=0) > LARGEST:
        raise ValueError(
            f"{column.name} holds {np.nanmax(np.abs(values)):.3g}, beyond ±{LARGEST * column.step:.3g} {column.unit}"
        )
    stored = steps.astype(column.stored)
    stored[missing] = MISSING
    return stored


def blank_rows(column: Column, num_rows: int, row_shape: tuple[int, ...]) -> np.ndarray:
    """Rows without a value: NaN, or the blank of an integer column.

    Raises:
        ValueError: An integer column without a blank.
    """
    if column.step is not None or column.stored.kind == "f":
        return np.full((num_rows, *row_shape), np.nan, np.float32)
    if column.blank is None:
        raise ValueError(f"{column.name} has no value for rows without a face")
    return np.full((num_rows, *row_shape), column.blank, column.stored)


def is_blank(column: Column, values: np.ndarray) -> np.ndarray:
    """Rows without any value, `[rows]` bool: all NaN, or all the blank of an integer column."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(rows).all(axis=1))
    return np.zeros(len(rows), bool) if column.blank is None else np.asarray(np.equal(rows, column.blank).all(axis=1))


Arrays = Mapping[str, np.ndarray]
"""Name of a column → its rows."""
