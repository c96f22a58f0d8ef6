"""VFHQ metadata: per-clip files in the styles in the wild, the zip, the name lists, and released clips."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.adapters.vfhq import VfhqMeta, VfhqName
from ingest.catalog import build_catalog
from talkinghead.schema import KEY_PATTERN

NAME = "Clip+WSGW-7gHS6A+P0+C1+F2551-2669"
KEY = "vfhq-WSGW-7gHS6A-P0-C1-F002551-002669"
COLONS = """Video path: x
H: 1080
W: 1920
FPS: 25.0

FRAME INDEX X0 Y0 W H [Landmarks (5 Points)]

2551 00000000 700 100 400 500 1 2 3 4 5 6 7 8 9 10
CROP: 616 20 1416 820
"""
PLAIN = COLONS.replace(":", "").replace("25.0", "29.97")


def test_official_lists(shared: Path, tmp_path: Path):
    catalog = build_catalog("vfhq", tmp_path, shared / "metadata" / "VFHQ")
    assert len(catalog.rows) == 17_266
    assert catalog.problems == []
    assert len({row.split_group for row in catalog.rows}) == 7_428
    # 113 of these 7,428 ids begin with `-`; after the prefix the key is an ordinary name
    assert len({row.source_id for row in catalog.rows if row.source_id.startswith("-")}) == 113
    assert all(KEY_PATTERN.fullmatch(row.key) and row.key.startswith("vfhq-") for row in catalog.rows)
    row = next(row for row in catalog.rows if row.key == KEY)
    assert (row.start_s, row.box, row.source, row.person) == (None, None, None, "WSGW-7gHS6A-P0")
    assert "no meta file" in row.notes[0]


@pytest.mark.parametrize(("text", "fps"), [(COLONS, 25.0), (PLAIN, 29.97), ("\ufeff" + COLONS, 25.0)])
def test_meta_file_gives_interval_and_box(tmp_path: Path, text: str, fps: float):
    folder = tmp_path / "metadata" / "meta_info"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.txt").write_text(text)
    (tmp_path / "WSGW-7gHS6A.mp4").touch()
    (row,) = build_catalog("vfhq", tmp_path).rows
    assert (row.key, row.source) == (KEY, "WSGW-7gHS6A.mp4")
    assert row.start_s == 2552 / fps  # frames 2552 .. 2668
    assert row.end_s == 2669 / fps
    assert row.box == (616.0, 20.0, 1416.0, 820.0)
    assert (row.box_width, row.box_height, row.frame_fps) == (1920.0, 1080.0, None)


def test_zip_equals_unpacked_and_lists_are_merged(tmp_path: Path):
    other = "Clip+-1Jouc19Ixo+P0+C1+F4196-4320"
    unpacked, packed = tmp_path / "unpacked", tmp_path / "packed"
    for folder in (unpacked, packed):
        folder.mkdir()
        (folder / "id_test.txt").write_text(f"{NAME}\n{other}\n{other}\nnonsense\n")
    (unpacked / f"{NAME}.txt").write_text(COLONS)
    (unpacked / f"{other}.txt").write_text("H: 10\n")
    with zipfile.ZipFile(packed / "meta_info.zip", "w") as archive:
        archive.write(unpacked / f"{NAME}.txt", f"meta_info/{NAME}.txt")
        archive.write(unpacked / f"{other}.txt", f"meta_info/{other}.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    catalogs = [build_catalog("vfhq", empty, folder) for folder in (unpacked, packed)]
    assert catalogs[0] == catalogs[1]
    assert [row.start_s is None for row in catalogs[0].rows] == [True, False]
    assert [(p.file, p.line) for p in catalogs[0].problems] == [
        (f"{other}.txt", None),
        ("id_test.txt", 3),
        ("id_test.txt", 4),
    ]


def test_released_clips_and_frame_folders(tmp_path: Path):
    frames, movie = "Clip+8jwB6QSzjy4+P0+C1+F17517-17845", NAME
    (tmp_path / "VFHQ" / frames).mkdir(parents=True)
    (tmp_path / "VFHQ" / frames / "00000184.png").touch()
    (tmp_path / "VFHQ" / f"{movie}.mp4").touch()
    (tmp_path / "id_train.txt").write_text(f"{frames}\n{movie}\n")
    catalog = build_catalog("vfhq", tmp_path)
    row = {row.source: row for row in catalog.rows}
    assert catalog.unused == ()
    folder_row, movie_row = row[f"VFHQ/{frames}"], row[f"VFHQ/{movie}.mp4"]
    assert folder_row.frame_fps == 25.0
    assert any("25 fps assumed" in note for note in folder_row.notes)
    assert (movie_row.frame_fps, movie_row.start_s, movie_row.box) == (None, None, None)
    (tmp_path / f"{frames}.txt").write_text(PLAIN)
    again = {row.key: row for row in build_catalog("vfhq", tmp_path).rows}[folder_row.key]
    assert (again.frame_fps, again.start_s, again.source) == (29.97, None, folder_row.source)


ids = st.text("abcXYZ019-_", min_size=11, max_size=11)
number = st.integers(0, 10**7)


@given(ids, st.integers(0, 99), st.integers(0, 99), number, st.integers(2, 10**5))
def test_names_round_trip(video_id, person, clip, first, length):
    text = f"Clip+{video_id}+P{person}+C{clip}+F{first}-{first + length}"
    name = VfhqName.parse(text)
    assert (name.video_id, name.person, name.clip, name.first, name.last) == (
        *(video_id, person, clip),
        *(first, first + length),
    )
    assert KEY_PATTERN.fullmatch(name.key)


@pytest.mark.parametrize("bad", ["", "H: 1\nW: 1\nFPS: 25", COLONS.replace("25.0", "0"), COLONS.replace("616", "1416")])
def test_bad_meta_files_are_refused(bad: str):
    with pytest.raises(ValueError, match=r"line|fps|CROP"):
        VfhqMeta.parse(bad)
