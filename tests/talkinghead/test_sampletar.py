"""Samples come out of a tar as they went in, with one read."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable

import pytest

from talkinghead.files.storage import Storage
from talkinghead.sampletar import member_header, pack_samples, read_members, walk_members, write_sample
from talkinghead.schema import Member

FIRST = {"json": b"{}", "mp4": bytes(range(256)) * 5, "wav": b"sound" * 200}
SECOND = {"json": b"[]", "mp4": b"other", "wav": b""}


@pytest.fixture
def storage(tmp_path) -> Storage:
    storage = Storage(tmp_path)
    storage.write("clips.tar", pack_samples([("first", FIRST), ("second", SECOND)]))
    return storage


def places() -> list[Member]:
    """Places of the second sample's members."""
    sink = io.BytesIO()
    write_sample(sink, 0, "first", FIRST)
    return write_sample(sink, sink.tell(), "second", SECOND)


def test_members_come_back_with_one_read(storage: Storage) -> None:
    reads = []

    def read(path: str, offset: int, length: int) -> bytes:
        reads.append(length)
        return storage.read_range(path, offset, length)

    assert read_members(read, "clips.tar", "second", places()) == SECOND
    assert read_members(read, "clips.tar", "second", places()[::-1], "mp4", "json") == {"mp4": b"other", "json": b"[]"}
    assert len(reads) == 2


def test_a_member_that_is_not_there_is_named(storage: Storage) -> None:
    with pytest.raises(ValueError, match=r"clips\.tar has no second\.npy"):
        read_members(storage.read_range, "clips.tar", "second", places(), "mp4", "npy")


def tar(change: Callable[[tarfile.TarInfo], None], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of a good sample and one more member."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name in ("key.json", "other.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            if name == "other.json":
                change(info)
            archive.addfile(info, io.BytesIO(b"{}"))
    return sink.getvalue()


def named(name: str) -> Callable[[tarfile.TarInfo], None]:
    return lambda info: setattr(info, "name", name)


def linked(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


STRANGE = {
    "upwards": named("../../other.json"),
    "absolute": named("/etc/other.json"),
    "in a folder": named("other/a.json"),
    "two dots": named("other.json.gz.exe"),
    "no suffix": named("other"),
    "long": named("x" * 300 + ".json"),
    "link": linked(tarfile.SYMTYPE),
    "hard link": linked(tarfile.LNKTYPE),
    "device": linked(tarfile.CHRTYPE),
    "pipe": linked(tarfile.FIFOTYPE),
    "folder": linked(tarfile.DIRTYPE),
    "sparse": lambda info: setattr(info, "type", tarfile.GNUTYPE_SPARSE),
    "owner": lambda info: setattr(info, "uid", 1),
}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("strange", STRANGE)
def test_only_members_as_we_write_them_are_listed(strange: str, kind: int) -> None:
    if strange == "long" and kind == tarfile.USTAR_FORMAT:
        pytest.skip("ustar has no such names")
    # GNU's headers are others from the first one on.
    place = "0" if kind == tarfile.GNU_FORMAT else "1,024"
    with pytest.raises(ValueError, match=rf"no header of a <key>\.<suffix> file at byte {place}$"):
        list(walk_members(io.BytesIO(tar(STRANGE[strange], kind))))


def test_headers_that_lie() -> None:
    whole = pack_samples([("key", {"json": b"{}"}), ("other", {"json": b"[]"})])
    assert [(key, member.offset) for key, member in walk_members(io.BytesIO(whole))] == [("key", 512), ("other", 1536)]
    terabyte = member_header("key", "json", 8**11 - 1) + b"{}"
    for data, said in (
        (terabyte, "ends after the file"),
        (whole[:-1], "no end mark"),
        (whole + bytes(512), "no end mark"),
        (whole[:1000], "ends after the file"),
        (whole[:1100], "no header"),
        (b"", "no end mark"),
        (gzip.compress(whole), "no header"),
        (whole.replace(b"ustar", b"ustax"), "no header"),
    ):
        with pytest.raises(ValueError, match=said):
            list(walk_members(io.BytesIO(data)))


def test_a_sample_without_members() -> None:
    with pytest.raises(ValueError, match=r"a\.tar has no members of key"):
        read_members(lambda *_: b"", "a.tar", "key", [])
