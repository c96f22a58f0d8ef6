"""Metadata that would fill the memory, never end, or lead elsewhere: one line, within a gigabyte."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ingest.adapters.metadata_files import (
    LIST_BYTES,
    MEMBER_BYTES,
    TABLE_BYTES,
    ZIP_TABLE_BYTES,
    MetadataFolder,
)
from ingest.catalog import build_catalog
from ingest.source_listing import Problems
from tests.ingest.adapters.test_vfhq import COLONS, KEY, NAME
from tests.support.paths import ROOT

HEADER = b",VideoId,SaveIdName,Time,Bbox\n"


# Contents are functions: they are large, and made for their own test only.


def _json(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "celebvhq_info.json").write_bytes(content())


def _csv(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "clips.csv").write_bytes((HEADER + content())[:TABLE_BYTES])


def _hdtf(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "RD_annotion_time.txt").write_bytes(content()[:LIST_BYTES])


def _zip(members: Callable[[], Iterable[tuple[str, bytes]]]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "meta_info.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in members():
                archive.writestr(name, content)

    return make


def _large_member(folder: Path) -> None:
    """A zip of 5 MB whose only member unpacks to 1.2 GB."""
    with (
        zipfile.ZipFile(folder / "meta_info.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{NAME}.txt", "w", force_zip64=True) as stream,
    ):
        for _ in range(150):
            stream.write(bytes(8 << 20))


# Content, and a part of what is said of it.
HEAVY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "lists": ("celebv-hq", _json(lambda: b"[" + b"[]," * (TABLE_BYTES // 3 - 9) + b"[]]"), "objects and lists"),
    "brackets": ("celebv-hq", _json(lambda: b"[" * 200_000), "nested too deeply"),
    "keys": (
        "celebv-hq",
        _json(lambda: b'{"clips":{' + b",".join(b'"%06x":0' % i for i in range(1_900_000)) + b"}}"),
        "1,900,000 clips",
    ),
    "strings": (
        "celebv-hq",
        _json(lambda: b"[" + '"ā",'.encode() * (TABLE_BYTES // 5 - 9) + '"😀"]'.encode()),
        'no "clips"',
    ),
    "too large": ("celebv-hq", _json(lambda: b" " * (TABLE_BYTES + 1)), "too large"),
    "lines": ("celebv-hq", _csv(lambda: b"x\n" * (TABLE_BYTES // 2)), "more than 200,000 lines"),
    "quote": ("celebv-hq", _csv(lambda: b'"' + b"x" * TABLE_BYTES), "field larger than field limit"),
    "commas": ("celebv-hq", _csv(lambda: b"," * TABLE_BYTES), "2 numbers expected"),
    "intervals": ("hdtf", _hdtf(lambda: b"v " + b"0:1-0:2 " * LIST_BYTES), "intervals"),
    "names": ("hdtf", _hdtf(lambda: b"!\n" * LIST_BYTES), "more than 200,000 lines"),
    "bomb": ("vfhq", _large_member, f"more than {MEMBER_BYTES:,} bytes"),
    "many": ("vfhq", _zip(lambda: ((f"Clip+{i}.txt", bytes(MEMBER_BYTES)) for i in range(100))), "unpacks to far more"),
    "members": ("vfhq", _zip(lambda: ((f"{i:0200d}", b"") for i in range(72_000))), "too many members"),
}

PROGRAM = """
import resource, sys
from pathlib import Path
from ingest.catalog import build_catalog
# What the interpreter and its libraries hold already, and one gigabyte.
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30) - (100 << 20), resource.RLIM_INFINITY))
try:
    print(*build_catalog(sys.argv[1], Path(sys.argv[2])).problems, sep="\\n")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_metadata_ends_in_one_line_within_a_gigabyte(tmp_path: Path, name: str):
    dataset, make, message = HEAVY[name]
    make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dataset, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert (done.returncode, message in done.stdout) == (0, True), (done.stdout[-500:], done.stderr[-2000:])


def test_the_limits_let_the_official_files_through():
    # Sizes from their pointer files, see the docstrings.
    assert TABLE_BYTES > 19_074_683
    assert LIST_BYTES > 2 * 581_821
    assert 4 * 17_266 * (46 + len(f"meta_info/{NAME}.txt") + 36) < ZIP_TABLE_BYTES


# --- zips -------------------------------------------------------------------------------------------------------------


def test_odd_members_of_a_zip_are_problems_and_the_others_are_read(tmp_path: Path):
    other = [NAME.replace("+P0+", f"+P{i}+") for i in range(1, 7)]
    with zipfile.ZipFile(tmp_path / "meta_info.zip", "w") as archive:
        archive.writestr(f"meta_info/{NAME}.txt", COLONS)
        archive.writestr(f"../../{other[0]}.txt", COLONS)  # nothing is unpacked to the disk
        link = zipfile.ZipInfo(f"{other[1]}.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr(f"{other[2]}.txt", COLONS)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(f"{other[2]}.txt", COLONS.replace("616", "617"))
        archive.writestr("inner.zip", b"PK")
        archive.writestr(zipfile.ZipInfo(f"{other[3]}.txt"), COLONS, zipfile.ZIP_LZMA)
        archive.writestr(f"{other[4]}.txt", COLONS)
    # Encrypted, by its flag in the table.
    data = bytearray((tmp_path / "meta_info.zip").read_bytes())
    at = data.rindex(f"{other[4]}.txt".encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 8] |= 1
    (tmp_path / "meta_info.zip").write_bytes(data)
    catalog = build_catalog("vfhq", tmp_path)
    assert [row.key for row in catalog.rows] == [KEY, KEY.replace("P0", "P1"), KEY.replace("P0", "P3")]
    said = {problem.file: problem.message for problem in catalog.problems}
    assert said == {
        f"{other[1]}.txt": "a link; not read",
        f"{other[2]}.txt": "there twice with different content; the first is taken",
        f"{other[3]}.txt": "packed in an unusual way; not read",
        f"{other[4]}.txt": "encrypted; not read",
    }
    assert not list(tmp_path.parent.glob("Clip+*"))


def test_damaged_zips_are_one_line(tmp_path: Path):
    _zip(lambda: [(f"{NAME}.txt", COLONS.encode()), ("x" * 300, b"y" * 300)])(tmp_path)
    whole = (tmp_path / "meta_info.zip").read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    damaged = [whole[:n] for n in range(0, len(whole), 37)]
    damaged += [whole[:i] + b"\xff\xff\xff\x7f" + whole[i + 4 :] for i in range(0, len(whole) - 4, 11)]
    damaged += [whole[: end + 12] + struct.pack("<I", size) + whole[end + 16 :] for size in (0, 1, 2**31, 2**32 - 1)]
    for content in damaged:
        (tmp_path / "meta_info.zip").write_bytes(content)
        try:
            catalog = build_catalog("vfhq", tmp_path)
        except ValueError as error:
            assert "meta_info.zip" in str(error)
        else:
            assert len(catalog.rows) <= 1


def test_another_zip_in_the_folder_does_not_stop_the_ingest(tmp_path: Path):
    (tmp_path / f"{NAME}.txt").write_text(COLONS)
    (tmp_path / "release.zip").write_bytes(b"PK not a zip")
    catalog = build_catalog("vfhq", tmp_path)
    assert [row.key for row in catalog.rows] == [KEY]
    assert [problem.file for problem in catalog.problems] == ["release.zip"]


# --- links and special files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "name", "content"),
    [
        ("hdtf", "RD_annotion_time.txt", "A.mp4 00:01-00:02\n"),
        ("celebv-hq", "clips.csv", HEADER.decode() + 'x,M2Ohb0FAaJU,M2Ohb0FAaJU_1,"(1,2)","[0,1,0,1]"\n'),
        ("celebv-hq", "celebvhq_info.json", '{"clips": {}}'),
        ("vfhq", "id_train.txt", f"{NAME}\n"),
        ("vfhq", f"{NAME}.txt", COLONS),
    ],
)
def test_metadata_that_lead_out_are_not_read(tmp_path: Path, dataset: str, name: str, content: str):
    source, private = tmp_path / "in", tmp_path / "home"
    (source / "metadata").mkdir(parents=True)
    private.mkdir()
    (private / name).write_text(content)
    (link := source / "metadata" / name).symlink_to(private / name)
    count = 0 if name.endswith("json") else 1
    try:
        catalog = build_catalog(dataset, source)
    except ValueError as error:
        assert "--follow-links takes it" in str(error)
    else:
        assert catalog.rows == []
        assert any("--follow-links takes it" in problem.message for problem in catalog.problems)
    assert len(build_catalog(dataset, source, follow_links=True).rows) == count
    # The folder is a link: taken when the user names it.
    link.unlink()
    link.parent.rmdir()
    (source / "metadata").symlink_to(private)
    with pytest.raises(ValueError, match=r"leads out of SOURCE.*or name the metadata with --metadata"):
        build_catalog(dataset, source)
    assert len(build_catalog(dataset, source, follow_links=True).rows) == count
    assert len(build_catalog(dataset, source, source / "metadata").rows) == count


def test_pipes_never_wait(tmp_path: Path):
    (tmp_path / "id_test.txt").write_text("")
    for name in ("id_train.txt", "meta_info.zip", f"{NAME}.txt"):
        os.mkfifo(tmp_path / name)
    try:
        assert build_catalog("vfhq", tmp_path).rows == []
    except ValueError as error:
        assert "named pipe" in str(error)
    (tmp_path / "celebv").mkdir()
    for name in ("celebvhq_info.json", "clips.csv"):
        os.mkfifo(tmp_path / "celebv" / name)
    with pytest.raises(ValueError, match="no celebv-hq metadata"):
        build_catalog("celebv-hq", tmp_path / "celebv")


def test_lines_end_as_they_may(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \r\n\n  two\rthree\xff\nfour\n\n")
    problems = Problems()
    assert list(MetadataFolder(tmp_path).lines(tmp_path / "a.txt", problems)) == [(1, "one"), (3, "two"), (5, "four")]
    assert [problem.line for problem in problems] == [4]
