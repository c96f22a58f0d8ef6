"""Deterministic tar archives of samples, written so that stock `webdataset` reads them.

A sample is a sequence of members `<key>.<suffix>` with the same key. The same samples always give the same bytes: ustar
headers with time, owner and group zero. Since a member's bytes do not depend on its place, shards are packed by
copying members, without decoding anything.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO

from talkinghead.schema import Member, check_key, check_suffix

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)  # two zero blocks, as POSIX wants

ReadRange = Callable[[str, int, int], bytes]
"""Function (path, offset, length) → bytes, such as `Storage.read_range`."""


def member_bytes(key: str, suffix: str, content: bytes) -> bytes:
    """Header, content and padding of one member."""
    return member_header(key, suffix, len(content)) + content + bytes(-len(content) % BLOCK)


def member_header(key: str, suffix: str, size: int) -> bytes:
    """The 512 header bytes of `<key>.<suffix>`."""
    info = tarfile.TarInfo(f"{check_key(key)}.{suffix}")
    info.size = size
    info.mode = 0o644  # the other fields of a fresh TarInfo are zero or empty
    return info.tobuf(format=tarfile.USTAR_FORMAT, errors="strict")


def write_sample(sink: BinaryIO, offset: int, key: str, contents: Mapping[str, bytes]) -> list[Member]:
    """Append one sample at `offset`, the sink's position.

    Members are written in the order of `contents`, which the caller takes from the schema.

    Returns:
        Place of each content in the tar.
    """
    members = []
    for suffix, content in contents.items():
        sink.write(member_bytes(key, suffix, content))
        members.append(Member(suffix=suffix, offset=offset + BLOCK, size=len(content)))
        offset += BLOCK + padded(len(content))
    return members


def read_members(
    read: ReadRange, path: str, key: str, members: Iterable[Member], *suffixes: str
) -> dict[str, memoryview]:
    """Contents of one sample's members, with one read from the first of them to the last.

    Args:
        read: How ranges of files are read.
        path: Path of the tar: one unit's or a whole shard.
        key: Key of the sample.
        members: Places of its members.
        suffixes: Suffixes of the members to read; none: all.

    Returns:
        Suffix → content.

    Raises:
        ValueError: The sample has no such member. Exceptions of `read` pass through.
    """
    wanted = list(members)
    if suffixes:
        places = {member.suffix: member for member in wanted}
        if missing := [suffix for suffix in suffixes if suffix not in places]:
            raise ValueError(f"{path} has no {', '.join(f'{key}.{suffix}' for suffix in missing)}")
        wanted = [places[suffix] for suffix in suffixes]
    if not wanted:
        raise ValueError(f"{path} has no members of {key}")
    # One read over the whole span: a request costs more than the few bytes between the members. The contents are views.
    first = min(member.offset for member in wanted)
    stop = max(member.offset + member.size for member in wanted)
    block = memoryview(read(path, first, stop - first))
    return {member.suffix: block[member.offset - first : member.offset - first + member.size] for member in wanted}


def walk_members(stream: BinaryIO) -> Iterator[tuple[str, Member]]:
    """Key and place of every member of a tar, in order, from its headers alone.

    Only headers as `member_header` writes them are taken: no links, devices or folders, no names with a path, no
    extended headers. So the tar may be a stranger's.

    Raises:
        ValueError: A header is another, a content ends after the file, or there is no proper end.
    """
    size = stream.seek(0, io.SEEK_END)
    position = 0
    while position < size:
        stream.seek(position)
        block = stream.read(BLOCK)
        if block == bytes(BLOCK):
            break
        key, member = _parse_header(block, position)
        position = end_of([member])
        if position > size:
            raise ValueError(f"{key}.{member.suffix} ends after the file, at byte {position:,}")
        yield key, member
    stream.seek(position)
    if stream.read(len(END_OF_ARCHIVE) + 1) != END_OF_ARCHIVE:
        raise ValueError(f"no end mark after the last readable member, at byte {position:,}")


def _parse_header(block: bytes, position: int) -> tuple[str, Member]:
    """Key and place of the member whose header is at `position`."""
    try:
        key, _, suffix = block[:100].rstrip(b"\0").decode("ascii").partition(".")
        member = Member(suffix=check_suffix(suffix), offset=position + BLOCK, size=int(block[124:135], 8))
        ours = member_header(key, suffix, member.size)  # whatever else a header says, ours do not
    except ValueError:
        ours = b""
    if block != ours:
        raise ValueError(f"no header of a <key>.<suffix> file at byte {position:,}")
    return key, member


def end_of(members: Iterable[Member]) -> int:
    """Offset of the first byte after the last member."""
    return max(member.offset + padded(member.size) for member in members)


def padded(size: int) -> int:
    """Size rounded up to whole tar blocks."""
    return size + -size % BLOCK


def pack_samples(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """A whole tar in memory (for units of one clip; shards are streamed)."""
    buffer = io.BytesIO()
    for key, contents in samples:
        write_sample(buffer, buffer.tell(), key, contents)
    buffer.write(END_OF_ARCHIVE)
    return buffer.getvalue()
