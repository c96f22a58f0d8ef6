"""HDTF metadata: the official files with exact counts, and each of their defects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingest.adapters import hdtf
from ingest.catalog import build_catalog


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "metadata" / "HDTF"


@pytest.fixture(scope="module")
def rows(official: Path, tmp_path_factory: pytest.TempPathFactory):
    catalog = build_catalog("hdtf", tmp_path_factory.mktemp("empty"), official)
    return {row.key: row for row in catalog.rows}


def test_official_counts(official: Path, rows):
    videos, problems = hdtf.read_videos(official)
    assert {s: sum(v.subset == s for v in videos) for s in hdtf.SUBSETS} == {"RD": 57, "WDA": 183, "WRA": 130}
    clips = [clip for video in videos for clip in video.clips]
    assert len(videos) == 370
    assert len(clips) == len(rows) == 436
    assert sum(clip.crop_wh is not None for clip in clips) == 421
    assert all(video.url and video.height is not None for video in videos)
    assert round(sum(clip.end_s - clip.start_s for clip in clips) / 3600, 2) == 17.07
    assert [str(problem) for problem in problems] == [
        "RD_video_url.txt:24: Radio24 has a url but no intervals: no clip"
    ]


def test_rows_with_and_without_box(rows):
    with_box = [row for row in rows.values() if row.box is not None]
    assert len(with_box) == 421 - 2 - 3  # resolution 0 (two clips), crop larger than the frame (three)
    for row in rows.values():
        assert (row.box is None) == bool(row.notes)
        assert (row.box is None) == (row.box_height is None)
        assert row.box_width is None
        if row.box:
            x0, y0, x1, y1 = row.box
            assert x1 - x0 == y1 - y0 > 0
            assert row.box_height is not None
            assert 0 <= y0 < y1 <= row.box_height


def test_one_row_in_full(rows):
    row = rows["hdtf-RD-Radio11-001"]
    assert (row.start_s, row.end_s, row.box, row.box_height) == (90.0, 150.0, (557.0, 0.0, 1035.0, 478.0), 720.0)
    assert (row.source_id, row.person, row.split_group, row.licence) == (
        "RD_Radio11",
        None,
        "RD_Radio11",
        "CC-BY-4.0",
    )
    assert json.loads(row.attributes)["crop_wh"] == [557, 478, 0, 478]


def test_defects_of_the_official_files(rows):
    assert rows["hdtf-WDA-CarolynMaloney2-000"].url == "https://www.youtube.com/watch?v=RApGxN-O9Qc"  # after the BOM
    assert rows["hdtf-RD-Radio2-000"].url == "https://www.youtube.com/watch?v=uBWJJvynXpA"  # listed with &t=6s
    assert "hdtf-WRA-AdamKinzinger2-002" in rows  # trailing blank: neither lost nor a fourth interval
    assert "hdtf-WRA-AdamKinzinger2-003" not in rows
    assert "listed as 0" in rows["hdtf-WRA-KevinMcCarthy1-001"].notes[0]
    for key, lines in (("WDA-MaggieHassan", 776), ("WDA-MazieHirono1", 1134), ("WRA-PeterKing", 872)):
        assert f"{lines} lines is larger than the listed 720" in rows[f"hdtf-{key}-000"].notes[0]
    assert "no crop listed" in rows["hdtf-WRA-DuncanHunter-001"].notes[0]
    assert rows["hdtf-WRA-DuncanHunter-000"].box is not None


def test_split_groups(rows):
    group = {row.source_id: row.split_group for row in rows.values()}
    assert group["WDA_CarolynMaloney1"] == group["WDA_CarolynMaloney2"] == "CarolynMaloney"
    assert group["WDA_JimMcGovern"] == group["WDA_JimMcGovern1"] == "JimMcGovern"
    assert group["WDA_WhipJimClyburn"] == group["WDA_JamesClyburn1"] == "JamesClyburn"
    assert group["RD_Radio1"] != group["RD_Radio11"]


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder


def test_broken_lines_are_listed_with_file_and_line(tmp_path: Path):
    _write(
        tmp_path,
        RD_video_url="A http://h/a\n\nB\nA http://h/again\nC x y\n",
        RD_resolution="A.mp4 720\nB.mp4 high\n",
        RD_annotion_time="A.mp4 00:10-00:20 00:30 00:50-00:40 01:00:00-01:00:05\n../B.mp4 00:01-00:02\n",
        RD_crop_wh="A_0.mp4 0 10 0 10\nA_3.mp4 0 10 0\nZ_0.mp4 0 1 0 1\n",
        RD_crop_ratio="A_0.mp4 1.2\nA_0\udcff.mp4 1.2\n",
    )
    videos, problems = hdtf.read_videos(tmp_path)
    assert [(clip.index, clip.start_s) for clip in videos[0].clips] == [(0, 10.0), (3, 3600.0)]
    assert {(p.file, p.line) for p in problems} == {
        ("RD_video_url.txt", 3),
        ("RD_video_url.txt", 4),
        ("RD_video_url.txt", 5),
        ("RD_resolution.txt", 2),
        ("RD_annotion_time.txt", 1),
        ("RD_annotion_time.txt", 2),
        ("RD_crop_wh.txt", 2),
        ("RD_crop_wh.txt", 3),
        ("RD_crop_ratio.txt", 2),
        ("WDA_annotion_time.txt", None),
        ("WRA_annotion_time.txt", None),
    }


@pytest.mark.parametrize(
    "name", ["RD_Radio11.mp4", "Radio11.MKV", "RD/Radio11.webm", "m0Vf7QzaB8k.mp4", "Talk [m0Vf7QzaB8k].mp4"]
)
def test_source_is_found_by_any_usual_name(tmp_path: Path, name: str):
    _write(
        tmp_path,
        RD_video_url="Radio11 https://www.youtube.com/watch?v=m0Vf7QzaB8k&t=6s",
        RD_annotion_time="Radio11.mp4 00:30-01:00 01:30-02:30",
    )
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "Radio11.m4a").touch()
    (tmp_path / "Radio111.mp4").touch()
    catalog = build_catalog("hdtf", tmp_path)
    assert [row.source for row in catalog.rows] == [name, name]
    assert catalog.unused == ("Radio111.mp4",)


def test_the_better_of_two_files_is_taken_and_noted(tmp_path: Path):
    _write(tmp_path, RD_annotion_time="Radio11.mp4 00:30-01:00")
    for name in ("RD_Radio11.webm", "RD_Radio11.mp4", "Radio11.mp4"):
        (tmp_path / name).touch()
    catalog = build_catalog("hdtf", tmp_path)
    assert catalog.rows[0].source == "RD_Radio11.mp4"
    assert "also found and not used: RD_Radio11.webm" in catalog.rows[0].notes
    assert catalog.unused == ("RD_Radio11.webm", "Radio11.mp4")
