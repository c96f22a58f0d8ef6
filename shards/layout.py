"""Layout of `.wav` members: the place of their samples, so that a window can be read without the rest.

RIFF with nothing but `fmt ` (PCM, mono, 16 kHz, 16 bit) and `data`, so that the samples start at byte 44.
"""

from __future__ import annotations

import struct

from talkinghead.timebase import SAMPLE_RATE, samples_in

WAV_HEADER = 44
"""Bytes of the header of a `wav` member."""

# Little-endian. RIFF, size, WAVE; `fmt `, its size, format, channels, rate, bytes per second, bytes per sample of all
# channels, bits; `data`, its size.
_WAV = struct.Struct("<4sI4s4sIHHIIHH4sI")
assert _WAV.size == WAV_HEADER
_MOST_FRAMES = (2**32 - 1 - WAV_HEADER) // (2 * samples_in(1))  # RIFF counts bytes in 32 bits


def wav_header(num_frames: int) -> bytes:
    """The only header that a clip of `num_frames` frames may have."""
    # Two bytes a sample; the RIFF size leaves out the first 8 bytes of the file. 1, 1: PCM, mono.
    size = 2 * samples_in(num_frames)
    return _WAV.pack(b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16, b"data", size)


def check_wav_header(head: bytes, num_frames: int) -> None:
    """Raise `ValueError` unless a `wav` member begins with the header for a clip of `num_frames` frames."""
    if not 0 < num_frames <= _MOST_FRAMES or head[:WAV_HEADER] != wav_header(num_frames):
        raise ValueError(
            f"not a plain mono 16 kHz 16-bit WAV of {samples_in(num_frames)} samples ({num_frames} frames)"
        )
