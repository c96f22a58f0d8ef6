"""Arrays and a JSON object in one file: a zip that `numpy.load` reads, and the same bytes for the same content.

Members are `<name>.npy` (format 1.0) in the order of their names, and `about.json`; all are stored as they are, with a
fixed time. Sizes and names stand before each member, so that a file of a stranger's is read from its beginning on, and
nothing is asked for that is not in it.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from talkinghead.config import shown
from talkinghead.npy import read_npy
from talkinghead.provenance import pretty_json

MOST_BYTES = 2 << 30
"""Largest file."""
ABOUT = "about.json"
ABOUT_BYTES = 64 << 20
"""Largest JSON value: that with the keys of a million clips. Its objects take some times as much memory."""

_MOST_MEMBERS = 1000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
# Header before each member: signature, version, flags, compression, time, date, CRC, sizes stored and unpacked, lengths
# of name and extra field. Source: PKWARE, APPNOTE.TXT 6.3.10, section 4.3.7.
_HEADER = struct.Struct("<4s5H3I2H")
_MEMBER, _DIRECTORY = b"PK\x03\x04", b"PK\x01\x02"


def encode_npz(arrays: Mapping[str, np.ndarray], about: Any) -> bytes:
    """Content of a file with these arrays.

    Args:
        arrays: Name (lower-case letters, digits and `_`) → numbers with at least one axis.
        about: JSON value.

    Raises:
        ValueError: The file would be larger than `MOST_BYTES`.
    """
    members: dict[str, bytes] = {}
    for name, values in sorted(arrays.items()):
        assert _NAME.fullmatch(name), name
        assert values.ndim, f"{name} has no axis"
        buffer = io.BytesIO()
        stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    members[ABOUT] = pretty_json(about)
    size = sum(map(len, members.values()))
    if size > MOST_BYTES * 0.95 or len(members[ABOUT]) > ABOUT_BYTES:  # beyond 2 GiB, zip writes other headers
        raise ValueError(f"arrays of {size:,} bytes are too large for one file of ours")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        for name, data in sorted(members.items()):
            info = zipfile.ZipInfo(name)  # with a fixed time: the first that zip can write
            info.create_system = 3  # else it depends on the machine
            file.writestr(info, data)
    return packed.getvalue()


def decode_npz(data: bytes, name: str) -> tuple[dict[str, np.ndarray], Any]:
    """Arrays and JSON value of a file that `encode_npz` made; the arrays share its memory and are read only.

    Args:
        data: Content of the file.
        name: Name of the file, for messages.

    Raises:
        ValueError: It is no such file.
    """
    try:
        members = _members(memoryview(data))
        if len(text := members.pop(ABOUT, b"")) > ABOUT_BYTES:
            raise ValueError(f"its {ABOUT} has {len(text):,} bytes, may have {ABOUT_BYTES:,}")
        about = json.loads(bytes(text))
        return {member.removesuffix(".npy"): read_npy(content) for member, content in members.items()}, about
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no file of arrays of ours: {error}") from error


def _members(data: memoryview) -> dict[str, memoryview]:
    """Name → content of each member, which shares the memory of `data`; raises `ValueError` for any other zip."""
    found: dict[str, memoryview] = {}
    place = 0
    while data[place : place + 4] != _DIRECTORY:
        if len(data) < place + _HEADER.size:
            raise ValueError("it ends too early")
        head = _HEADER.unpack_from(data, place)
        signature, _, flags, compression, *_, stored, unpacked, name_length, extra = head
        start = place + _HEADER.size + name_length
        name = bytes(data[start - name_length : start]).decode("ascii", "replace")
        if signature != _MEMBER or flags or compression or extra or stored != unpacked:
            raise ValueError(f"it has another form at byte {place}")
        if name != ABOUT and not (name.endswith(".npy") and _NAME.fullmatch(name[:-4])):
            raise ValueError(f"it holds {shown(name)}")
        if name in found or len(found) == _MOST_MEMBERS:
            raise ValueError(f"it holds too much, or {shown(name)} twice")
        place = start + stored
        if place > len(data):
            raise ValueError(f"{name} ends too early")
        found[name] = data[start:place]
    return found


# --- texts as arrays --------------------------------------------------------------------------------------------------


def pack_texts(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Texts as two arrays: `<name>_utf8`, the bytes of all, and `<name>_length`, the number of bytes of each."""
    encoded = [text.encode() for text in texts]
    return {
        f"{name}_utf8": np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_length": np.array([len(text) for text in encoded], np.int64),
    }


def unpack_texts(name: str, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Inverse of `pack_texts`.

    Raises:
        ValueError: There are no such arrays, or they do not fit each other.
    """
    data, lengths = arrays.get(f"{name}_utf8"), arrays.get(f"{name}_length")
    if data is None or lengths is None or (data.dtype, lengths.dtype) != (np.uint8, np.int64):
        raise ValueError(f"it lacks the texts {name}")
    if data.ndim != 1 or lengths.ndim != 1 or (lengths < 0).any() or (lengths > len(data)).any():
        raise ValueError(f"its texts {name} have impossible lengths")
    ends = np.cumsum(lengths)
    if len(data) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"its texts {name} do not fit their lengths")
    whole = data.tobytes()
    return [whole[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
