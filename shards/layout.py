"""Layout of `.npy` and `.wav` members: places of their rows, so that a window can be read without the rest.

`.npy`: format 1.0 as `numpy.lib.format` documents it. `.wav`: RIFF with nothing but `fmt ` (PCM, mono, 16 kHz, 16 bit)
and `data`, so that the samples start at byte 44.
"""

from __future__ import annotations

import functools
import io
import math
import struct
from dataclasses import dataclass

import numpy as np

from talkinghead.timebase import SAMPLE_RATE, samples_in

WAV_HEADER = 44
"""Bytes of the header of a `wav` member."""
NPY_HEAD = 128
"""Bytes at the beginning of an `.npy` member that hold its header (NumPy pads it to a multiple of 64)."""

# Little-endian. RIFF, size, WAVE; `fmt `, its size, format, channels, rate, bytes per second, bytes per sample of all
# channels, bits; `data`, its size.
_WAV = struct.Struct("<4sI4s4sIHHIIHH4sI")
assert _WAV.size == WAV_HEADER


@dataclass(frozen=True)
class NpyLayout:
    """Shape, type and place of the rows of an `.npy` member."""

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
        """Bytes of the whole member."""
        return self.start + self.row_bytes * self.shape[0]

    def array_bytes(self, rows: bytes) -> bytes:
        """A complete `.npy` file with some of the rows, given as their bytes."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (len(rows) // self.row_bytes, *self.shape[1:]),
        }
        buffer = io.BytesIO()
        # The new header may be padded to another length than the old one: rows are never addressed in this copy.
        np.lib.format.write_array_header_1_0(buffer, header)
        return buffer.getvalue() + rows


# Headers repeat: one for each column and length of clip. Parsing one evaluates Python text.
@functools.lru_cache(4096)
def npy_layout(head: bytes) -> NpyLayout:
    """Layout of an `.npy` member from its first `NPY_HEAD` bytes.

    Raises:
        ValueError: It is no `.npy` of plain numbers in C order with at least one axis.
    """
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"npy format {version[0]}.{version[1]}, expected 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject or not shape:
        raise ValueError(f"npy holds {dtype} {shape}, expected rows of plain numbers in C order")
    return NpyLayout(shape, dtype, stream.tell())  # the header ends where row 0 begins, padding included


def wav_header(num_frames: int) -> bytes:
    """The only header that a clip of `num_frames` frames may have."""
    # Two bytes a sample; the RIFF size leaves out the first 8 bytes of the file. 1, 1: PCM, mono.
    size = 2 * samples_in(num_frames)
    return _WAV.pack(b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16, b"data", size)


def check_wav_header(head: bytes, num_frames: int) -> None:
    """Raise `ValueError` unless a `wav` member begins with the header for a clip of `num_frames` frames."""
    if head[:WAV_HEADER] != wav_header(num_frames):
        raise ValueError(
            f"not a plain mono 16 kHz 16-bit WAV of {samples_in(num_frames)} samples ({num_frames} frames)"
        )
