"""WAV files of the project: 16 kHz mono, 16 bit, a header of 44 bytes that depends on nothing but the length."""

from __future__ import annotations

import struct

import numpy as np

from talkinghead.timebase import SAMPLE_RATE

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_SCALE = 32768


def encode_wav(samples: np.ndarray) -> bytes:
    """Float32 `[N]` in -1 .. 1 as a WAV file; values outside are limited."""
    if samples.ndim != 1:
        raise ValueError(f"audio has shape {samples.shape}, must be [N]")
    quantised = np.clip(np.rint(samples.astype(np.float64) * _SCALE), -_SCALE, _SCALE - 1).astype("<i2")
    size = quantised.nbytes
    header = _HEADER.pack(
        b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16, b"data", size
    )
    return header + quantised.tobytes()


def decode_wav(data: bytes) -> np.ndarray:
    """Inverse of `encode_wav`: float32 `[N]`.

    Raises:
        ValueError: Not a WAV file of the project; any other audio file is read by `read_whole_audio`.
    """
    if len(data) < _HEADER.size:
        raise ValueError(f"a WAV file of {len(data)} bytes has no header")
    fields = _HEADER.unpack_from(data)
    if fields[0] != b"RIFF" or fields[5:8] != (1, 1, SAMPLE_RATE) or fields[10:12] != (16, b"data"):
        raise ValueError(f"not a 16-bit mono WAV file at {SAMPLE_RATE} Hz with a plain header")
    if fields[12] != len(data) - _HEADER.size:
        raise ValueError(f"the WAV header announces {fields[12]} bytes of samples, {len(data) - _HEADER.size} follow")
    return np.frombuffer(data, "<i2", offset=_HEADER.size).astype(np.float32) / _SCALE
