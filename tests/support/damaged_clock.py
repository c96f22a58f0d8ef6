"""Media files whose time stamps are changed packet by packet, in the bytes of the finished file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.support.media_files import write_video

Change = Callable[[str, int, int], int]
"""Kind of stream (`video`, `audio`), number of its packet, its time stamp in ticks → the new time stamp."""

TS_TICKS = 90_000
"""Ticks per second of a transport stream; its stamps have 33 bits."""
MKV_TICKS = 1000
"""Ticks per second of a Matroska file."""

_TS_PACKET = 188


def numbered(count: int, side: int = 64) -> list[np.ndarray]:
    """Images that show their number, up to 255, as eight stripes, dark or bright."""
    images = []
    for number in range(count):
        bits = np.unpackbits(np.array([number], np.uint8))
        row = np.where(bits, 200, 40).astype(np.uint8).repeat(side // 8)
        images.append(np.broadcast_to(row[None, :, None], (side, side, 3)))
    return images


def number_of(image: np.ndarray) -> int:
    """Number of an image of `numbered`."""
    stripes = image.mean(axis=(0, 2)).reshape(8, -1).mean(axis=1)
    return int(np.packbits(stripes > 120)[0])


def tone(seconds: float, hertz: float = 440.0, rate: int = 44100) -> np.ndarray:
    """A tone, float `[1, N]`."""
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)[None]


def numbered_video(path: Path, count: int, *, sound: bool = False, bf: int = 0, gop: int = 10, first: int = 0) -> Path:
    """A file of `count` images at 25 fps from number `first` on, with a tone of the same length or without sound."""
    return write_video(
        path,
        numbered(first + count)[first:],
        options={"g": str(gop), "crf": "1", "bf": str(bf)},
        audio=tone(count / 25) if sound else None,
    )


def restamp_ts(path: Path, change: Change, *, without: Callable[[str, int], bool] | None = None) -> Path:
    """Change the stamps of a transport stream in place; `without` takes all stamps off a packet (ISO/IEC 13818-1)."""
    data = bytearray(path.read_bytes())
    counts = {"video": 0, "audio": 0}
    for begin in range(0, len(data) - _TS_PACKET + 1, _TS_PACKET):
        if not data[begin + 1] & 0x40:
            continue
        at = begin + 4
        if data[begin + 3] & 0x20:
            at += 1 + data[at]
        if data[at : at + 3] != b"\x00\x00\x01":
            continue
        kind = {0xE0: "video", 0xC0: "audio"}.get(data[at + 3])
        if kind is None:
            continue
        number, counts[kind] = counts[kind], counts[kind] + 1
        flags = data[at + 7] >> 6
        if without is not None and without(kind, number):
            data[at + 7] &= 0x3F
            length = data[at + 8]
            data[at + 9 : at + 9 + length] = b"\xff" * length  # stuffing
            continue
        for place in range(at + 9, at + 9 + 5 * {0: 0, 2: 1, 3: 2}[flags], 5):
            b = data[place : place + 5]
            old = (b[0] >> 1 & 7) << 30 | b[1] << 22 | b[2] >> 1 << 15 | b[3] << 7 | b[4] >> 1
            new = change(kind, number, old) % (1 << 33)
            data[place] = b[0] & 0xF1 | new >> 30 << 1
            data[place + 1 : place + 5] = bytes(
                [new >> 22 & 255, (new >> 15 & 127) << 1 | 1, new >> 7 & 255, (new & 127) << 1 | 1]
            )
    path.write_bytes(data)
    return path


def restamp_mkv(path: Path, change: Change) -> Path:
    """Change the stamps of a Matroska file's blocks in place, by at most 32 s from their cluster's (RFC 9559)."""
    data = bytearray(path.read_bytes())
    counts = {"video": 0, "audio": 0}
    for at, cluster_ticks in _blocks(data):
        kind = {1: "video", 2: "audio"}[data[at] & 0x7F]
        number, counts[kind] = counts[kind], counts[kind] + 1
        old = cluster_ticks + int.from_bytes(data[at + 1 : at + 3], "big", signed=True)
        new = change(kind, number, old) - cluster_ticks
        data[at + 1 : at + 3] = new.to_bytes(2, "big", signed=True)
    path.write_bytes(data)
    return path


def _blocks(data: bytearray) -> Iterator[tuple[int, int]]:
    """Where each block's content begins, and its cluster's time stamp."""

    def number(at: int, keep: bool) -> tuple[int, int]:
        length = 9 - data[at].bit_length()
        value = int.from_bytes(data[at : at + length], "big")
        return (value if keep else value & ~(1 << 7 * length)), at + length

    at, cluster = 0, 0
    while at < len(data):
        identity, at = number(at, True)
        size, at = number(at, False)
        if identity in (0x18538067, 0x1F43B675, 0xA0):  # segment, cluster, block group: go into it
            continue
        if identity == 0xE7:
            cluster = int.from_bytes(data[at : at + size], "big")
        elif identity in (0xA3, 0xA1):
            yield at, cluster
        at += size
