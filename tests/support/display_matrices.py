"""Display matrices written into files, as cameras write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av

Matrix = tuple[float, float, float, float]
"""`a, b, c, d`: shown x = a · x + c · y, shown y = b · x + d · y, with y down."""

MATRICES: tuple[Matrix, ...] = (
    (1, 0, 0, 1),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (0, -1, 1, 0),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
)
"""All eight without a scale: four turns, two flips, two transposes."""


def fixed_point(matrix: Matrix) -> list[int]:
    """The nine numbers of ISO/IEC 14496-12 (16.16 and 2.30 fixed point)."""
    a, b, c, d = (round(value * 0x10000) for value in matrix)
    return [a, b, 0, c, d, 0, 0, 0, 0x40000000]


def with_track_matrix(file: Path, out: Path, matrix: Matrix) -> Path:
    """A copy of an mp4 or mov with this matrix in the header of its first track (`tkhd`, version 0)."""
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in fixed_point(matrix))
    out.write_bytes(data)
    return out


def copied(file: Path, out: Path, matrix: Sequence[int] | None = None, bitstream_filter: str | None = None) -> Path:
    """A copy of the packets in a new container, which says `matrix`; each through a filter of FFmpeg's."""
    with av.open(str(file)) as source, av.open(str(out), "w") as container:
        read = source.streams.video[0]
        written = container.add_stream_from_template(read)
        written.set_display_matrix(matrix)
        change = av.bitstream.BitStreamFilterContext(bitstream_filter, read) if bitstream_filter else None
        for packet in source.demux(read):
            if packet.size:
                for changed in [packet] if change is None else change.filter(packet):
                    changed.stream = written
                    container.mux(changed)
    return out
