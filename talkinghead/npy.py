"""`.npy` arrays that may be a stranger's: plain numbers in C order, or an error, never an object.

Format 1.0 as `numpy.lib.format` documents it. `numpy.load` would also open archives, and take the memory that a header
speaks of before a byte is there.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

import numpy as np

NPY_HEAD = 128
"""Bytes at the beginning of an array that hold its header (NumPy pads it to a multiple of 64)."""

# What NumPy writes, with bool, integers and floats only. NumPy's reader evaluates the text, with errors of all kinds.
_PREFIX = 10  # bytes of magic, version, and length of the text
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<type>[<|](?:b1|[iu][1248]|f[248]))', 'fortran_order': False,"
    rb" 'shape': \((?P<shape>\d{1,18},|\d{1,18}(?:, \d{1,18})+)\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class NpyLayout:
    """Shape, type and place of the rows of an `.npy` array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    """First byte of row 0."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes of the whole array with its header."""
        return self.start + self.row_bytes * self.shape[0]

    def rows(self, data: bytes | memoryview, count: int) -> np.ndarray:
        """Array of `count` rows, `[count, …]`, given as their bytes, which it shares."""
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


@functools.lru_cache(4096)  # headers repeat: one for each column and length of clip
def npy_layout(head: bytes) -> NpyLayout:
    """Layout of an `.npy` array from its first `NPY_HEAD` bytes.

    Raises:
        ValueError: It is no `.npy` of plain numbers in C order with at least one axis.
    """
    found = _HEADER.match(head)
    length = int.from_bytes(head[8:10], "little")
    if not found or found.end() != _PREFIX + length:
        raise ValueError("it does not begin like an .npy file of plain numbers in C order")
    shape = tuple(int(axis) for axis in found["shape"].split(b",") if axis.strip())
    if 0 in shape[1:]:
        raise ValueError(f"its rows are empty: {shape}")
    return NpyLayout(shape, np.dtype(found["type"].decode()), found.end())


def read_npy(data: bytes | memoryview) -> np.ndarray:
    """Array of a whole `.npy` file's content, `[N, …]`, which it shares.

    Raises:
        ValueError: It is no `.npy` of plain numbers in C order, or has more or fewer bytes than its header says.
    """
    layout = npy_layout(bytes(data[:NPY_HEAD]))
    if layout.size != len(data):
        raise ValueError(f"npy of {layout.dtype} {layout.shape} has {len(data)} bytes, its header says {layout.size}")
    return layout.rows(memoryview(data)[layout.start :], layout.shape[0])
