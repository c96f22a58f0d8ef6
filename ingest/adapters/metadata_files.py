"""Reading of metadata files, which come from the web: lines, JSON, tables and zips, each up to a limit.

The limits are a few times what the official files have, so that reading any file ends within seconds and well below a
gigabyte of memory. A file that is a link is read only when it stays inside the folder of the metadata, since its lines
would be quoted in the catalog's problems.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ingest.source_files import is_inside
from ingest.source_listing import Problem, Problems, shortened
from talkinghead.files.foreign import open_regular, parse_json, read_limited

TABLE_BYTES = 24 << 20
"""Largest JSON or CSV file. CelebV-HQ's own JSON, the largest, has 19,074,683 bytes for its 35,666 clips; read as JSON
it takes up to 25 times as much memory."""
JSON_CONTAINERS = 2_000_000
"""Most objects and lists of a JSON file, which take 40 times their text; CelebV-HQ's has about seven for each clip."""
LIST_BYTES = 2 << 20
"""Largest text file with one record a line. The largest official one, VFHQ's `id_train.txt`, has 581,821 bytes."""
MEMBER_BYTES = 4 << 20
"""Largest file of one clip. VFHQ's have a line of about 200 bytes for each frame; clips have some hundred frames."""
ZIP_BYTES = 2 << 30
"""Most bytes that are unpacked from one zip. VFHQ's `meta_info.zip` holds four million such lines in 178 MB."""
ZIP_RATIO = 50
"""Most bytes that are unpacked for a byte of a zip; text is packed to a third or a tenth."""
ZIP_TABLE_BYTES = 16 << 20
"""Largest table of members; VFHQ's, with 15,381, has about 2 MB."""

_LONG_NUMBER = re.compile(rb"[0-9]{400,}")


@dataclass(frozen=True)
class MetadataFolder:
    """A folder with metadata (or a single file), and whether links may lead out of it."""

    path: Path
    follow_links: bool = False

    def read(self, file: Path, limit: int) -> bytes:
        """Content of a file.

        Raises:
            ValueError: It is larger than the limit, no regular file, or a link that leads out of the folder.
            OSError: It cannot be read.
        """
        self.check(file)
        return read_limited(file, limit, "metadata file")

    def check(self, file: Path) -> None:
        """Raise `ValueError` for a file that is a link out of the folder."""
        # A file that the user named themselves may be a link.
        if not self.follow_links and file != self.path and not is_inside(self.path, file):
            raise ValueError(
                f"{file} is a link that leads out of the folder of the metadata: {file.resolve()}; "
                "--follow-links takes it"
            )

    def lines(self, file: Path, problems: Problems) -> Iterator[tuple[int, str]]:
        """Number and text of each line that is not blank; a byte order mark and outer blanks are taken off.

        A line that is not UTF-8 is added to `problems` and left out.
        """
        # Split as bytes, so that a line that is not UTF-8 spoils no other; one by one, because there may be millions.
        data = self.read(file, LIST_BYTES).removeprefix(b"\xef\xbb\xbf")
        for number, match in enumerate(re.finditer(rb"([^\r\n]*)(?:\r\n|\r|\n|$)", data), start=1):
            try:
                text = match[1].decode("utf-8").strip()
            except UnicodeDecodeError:
                problems.append(Problem(file=file.name, line=number, message=f"not UTF-8: {match[1][:60]!r}"))
                continue
            if text:
                yield number, text

    def json(self, file: Path) -> Any:
        """Value of a JSON file.

        Raises:
            ValueError: It is no JSON, or not read, as in `read`.
        """
        data = self.read(file, TABLE_BYTES)
        if data.count(b"{") + data.count(b"[") > JSON_CONTAINERS:
            raise ValueError(f"{file} has more than {JSON_CONTAINERS:,} objects and lists")
        # Python refuses to read numbers of more than 4,300 digits, and with them the whole file. They are infinite
        # here, which is one clip's fault.
        return parse_json(_LONG_NUMBER.sub(b"1e999", data), str(file))

    def zip_members(self, file: Path, pattern: re.Pattern[str], problems: Problems) -> Iterator[tuple[str, bytes]]:
        """Name without folders, and content, of the members of a zip whose name without folders matches a pattern.

        Nothing is unpacked to the disk, so names may say what they like. Members that are encrypted, links, or too
        large are added to `problems`.

        Raises:
            ValueError: It is no whole zip file, not read, as in `read`, or unpacks to more than a limit.
        """
        self.check(file)
        with open_regular(file) as stream:
            size = stream.seek(0, 2)
            most = min(ZIP_BYTES, ZIP_RATIO * size + MEMBER_BYTES)
            try:
                with zipfile.ZipFile(_SmallReads(stream, str(file))) as archive:  # pyright: ignore[reportArgumentType]
                    for member in sorted(archive.infolist(), key=lambda member: member.filename):
                        name = member.filename.rpartition("/")[2]
                        if not pattern.fullmatch(name):
                            continue
                        try:
                            content = _member(archive, member)
                        except _MemberError as error:
                            problems.append(Problem(file=name, message=str(error)))
                            continue
                        # What really came out counts, whatever the table says.
                        most -= len(content)
                        if most < 0:
                            raise ValueError(f"{file} unpacks to far more than metadata: it is not read")
                        yield name, content
            except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
                raise ValueError(
                    f"{file} is not a whole zip file ({shortened(str(error))}); download it again"
                ) from error


class _MemberError(Exception):
    """A member of a zip that is not read."""


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 0x1:
        raise _MemberError("encrypted; not read")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _MemberError("a link; not read")
    # The others may ask for gigabytes of memory, or need a library that is not there.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _MemberError("packed in an unusual way; not read")
    with archive.open(member) as stream:
        content = stream.read(MEMBER_BYTES + 1)
    if len(content) > MEMBER_BYTES:
        raise _MemberError(f"has more than {MEMBER_BYTES:,} bytes; not read")
    return content


class _SmallReads:
    """A stream that refuses to read much at once: that is how `zipfile` reads the table of members, before a caller
    can look at its size. Members are read in small pieces."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size if 0 <= size <= ZIP_TABLE_BYTES else ZIP_TABLE_BYTES + 1)
        if len(data) > ZIP_TABLE_BYTES:
            raise ValueError(f"{self._name} has too many members for metadata: it is not read")
        return data
