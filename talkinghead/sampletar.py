"""Deterministic tar archives of samples, written so that stock `webdataset` reads them.

A sample is the run of members `<key>.<suffix>` with the same key. The same samples always give the same bytes: ustar
headers with time, owner and group zero. Since a member's bytes do not depend on its place, shards are packed by
copying members, without decoding anything.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

from talkinghead.schema import Member, check_key

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)


def member_bytes(key: str, suffix: str, content: bytes) -> bytes:
    """Header, content and padding of one member."""
    return member_header(key, suffix, len(content)) + content + bytes(-len(content) % BLOCK)


def member_header(key: str, suffix: str, size: int) -> bytes:
    """The 512 header bytes of `<key>.<suffix>`."""
    info = tarfile.TarInfo(f"{check_key(key)}.{suffix}")
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT, errors="strict")


def write_sample(sink: BinaryIO, offset: int, key: str, contents: Mapping[str, bytes]) -> list[Member]:
    """Append one sample at `offset` (the sink's position) and say where each content lies.

    Members are written in the order of `contents`, which the caller takes from the schema.
    """
    members = []
    for suffix, content in contents.items():
        sink.write(member_bytes(key, suffix, content))
        members.append(Member(suffix=suffix, offset=offset + BLOCK, size=len(content)))
        offset += BLOCK + padded(len(content))
    return members


def end_of(members: Iterable[Member]) -> int:
    """Offset of the first byte behind the last member."""
    return max(member.offset + padded(member.size) for member in members)


def padded(size: int) -> int:
    """Size rounded up to whole tar blocks."""
    return size + -size % BLOCK


def read_samples(stream: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every (key, {suffix: content}) of a tar (a seekable stream) in order.

    Raises:
        ValueError: A member that is not a plain file, has a folder in its name, or whose sample is not in one run;
            or the tar is cut short.
    """
    seen: set[str] = set()
    current: tuple[str, dict[str, bytes]] | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                key, dot, suffix = info.name.partition(".")
                if not (info.isreg() and dot) or "/" in info.name:
                    raise ValueError(f"member {info.name!r} is no <key>.<suffix> file")
                if current is None or current[0] != check_key(key):
                    if current is not None:
                        yield current
                    if key in seen:
                        raise ValueError(f"the members of {key} are not in one run")
                    seen.add(key)
                    current = (key, {})
                reader = archive.extractfile(info)
                assert reader is not None
                content = reader.read()
                if len(content) != info.size:
                    raise ValueError(f"the tar ends inside {info.name}")
                current[1][suffix] = content
            # tarfile takes a damaged header for the end; only two zero blocks are one.
            stream.seek(archive.offset)
            if stream.read(len(END_OF_ARCHIVE)) != END_OF_ARCHIVE:
                raise ValueError(f"the tar is damaged or cut short at byte {archive.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"no readable tar: {error}") from error
    if current is not None:
        yield current


def pack_samples(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """A whole tar in memory (for units of one clip; shards are streamed)."""
    buffer = io.BytesIO()
    for key, contents in samples:
        write_sample(buffer, buffer.tell(), key, contents)
    buffer.write(END_OF_ARCHIVE)
    return buffer.getvalue()
