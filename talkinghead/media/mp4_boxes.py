"""Moves the index of an MP4 file to its front, so that a reader needs no seek to the end before the first frame.

FFmpeg's `faststart` does the same but needs a file on disk. Box layout: ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def index_first(mp4: bytes) -> bytes:
    """The same file with `moov` before `mdat`; chunk offsets move along. A file that has it so is returned."""
    boxes = {name: mp4[begin:end] for name, begin, end in _boxes(mp4, 0, len(mp4))}
    if list(boxes).index(b"moov") < list(boxes).index(b"mdat"):
        return mp4
    moov = bytearray(boxes.pop(b"moov"))
    _shift_chunks(moov, 0, len(moov), len(moov))
    return b"".join([boxes.pop(b"ftyp"), moov, *boxes.values()])


def _shift_chunks(data: bytearray, begin: int, end: int, shift: int) -> None:
    """Add `shift` to every chunk offset below the boxes in `begin .. end`."""
    for name, first, last in _boxes(data, begin, end):
        if name in _CONTAINERS:
            _shift_chunks(data, first + 8, last, shift)
        elif name in (b"stco", b"co64"):
            (count,) = struct.unpack_from(">I", data, first + 12)
            layout = f">{count}{'I' if name == b'stco' else 'Q'}"
            offsets = struct.unpack_from(layout, data, first + 16)
            struct.pack_into(layout, data, first + 16, *(offset + shift for offset in offsets))


def _boxes(data: bytes | bytearray, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and end of each box in a row."""
    while begin + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, begin)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin + 8)
        elif size == 0:
            size = end - begin
        assert 8 <= size <= end - begin, f"box {name!r} of {size} bytes does not fit"
        yield name, begin, begin + size
        begin += size
