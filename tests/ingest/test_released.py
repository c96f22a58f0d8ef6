"""Released clips: found by the names of clips, taken as a whole, reported where their lengths contradict the list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingest.catalog import build_catalog
from ingest.extent import Extent
from ingest.released import LISTED, NOTE, check_lengths

HDTF = {
    "WDA_video_url": "Ann http://youtu.be/aaaaaaaaaaa\nAnn_0 http://youtu.be/bbbbbbbbbbb\n",
    "WDA_resolution": "Ann.mp4 720\nAnn_0.mp4 720\n",
    "WDA_annotion_time": "Ann.mp4 00:10-00:20 00:30-00:40\nAnn_0.mp4 00:00-00:09\n",
    "WDA_crop_wh": "Ann_0.mp4 0 600 0 600\nAnn_1.mp4 0 500 0 500\n",
    "WDA_crop_ratio": "",
}


@pytest.fixture
def hdtf(tmp_path: Path) -> Path:
    folder = tmp_path / "hdtf"
    folder.mkdir()
    for name, text in HDTF.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    "name", ["Ann_1.mp4", "WDA_Ann_1.mp4", "WDA_Ann_001.mp4", "clips/Ann_001.MP4", "WDA-Ann_1.mkv"]
)
def test_hdtf_clips_are_found_by_the_names_of_downloaders(hdtf: Path, tmp_path: Path, name: str) -> None:
    catalog = build_catalog("hdtf", touch(tmp_path / "videos", name), hdtf)
    row = next(row for row in catalog.rows if row.key == "hdtf-WDA-Ann-001")
    assert row.source == name and NOTE in row.notes
    # Cut and cropped already: neither interval nor box again. Person, group and licence are those of the metadata.
    assert (row.start_s, row.end_s, row.box, row.box_height) == (None, None, None, None)
    assert (row.person, row.split_group, row.licence) == ("Ann", "Ann", "CC-BY-4.0")
    about = json.loads(row.attributes)
    assert about[LISTED] == [30.0, 40.0] and about["crop_wh"] == [0, 500, 0, 500]
    assert (catalog.there, catalog.released, len(catalog.rows)) == (1, 1, 3)


def test_hdtf_whole_videos_come_first_and_a_video_is_no_clip_of_another(hdtf: Path, tmp_path: Path) -> None:
    rows = {row.key: row for row in build_catalog("hdtf", touch(tmp_path / "v", "Ann.mp4", "Ann_1.mp4"), hdtf).rows}
    whole = rows["hdtf-WDA-Ann-001"]
    assert (whole.source, whole.start_s, NOTE in whole.notes) == ("Ann.mp4", 30.0, False) and whole.box is not None
    # `Ann_0` is a video of its own here.
    rows = {row.key: row for row in build_catalog("hdtf", touch(tmp_path / "w", "Ann_0.mp4"), hdtf).rows}
    assert rows["hdtf-WDA-Ann-000"].source is None and rows["hdtf-WDA-Ann_0-000"].source == "Ann_0.mp4"


@pytest.fixture
def celebv(tmp_path: Path) -> Path:
    def clip(video: str) -> dict:
        return {
            "ytb_id": video,
            "duration": {"start_sec": 5.0, "end_sec": 9.5},
            "bbox": {"top": 0.1, "bottom": 0.9, "left": 0.2, "right": 0.8},
            "attributes": {"appearance": [1], "action": [0], "emotion": {"sep_flag": False, "labels": "neutral"}},
        }

    clips = {"-a_bcdefgh__3": clip("-a_bcdefgh_"), "-a_bcdefgh__3_0": clip("-a_bcdefgh_")}
    info = {"meta_info": {"appearance_mapping": ["Young"], "action_mapping": ["talk"]}, "clips": clips}
    path = tmp_path / "celebvhq_info.json"
    path.write_text(json.dumps(info))
    return path


def test_celebv_clips_are_found_by_their_names(celebv: Path, tmp_path: Path) -> None:
    catalog = build_catalog("celebv-hq", touch(tmp_path / "v", "35666/-a_bcdefgh__3.mp4"), celebv)
    rows = {row.key: row for row in catalog.rows}
    row = rows["celebv-hq--a_bcdefgh__3"]
    assert (row.source, row.start_s, row.end_s, row.box) == ("35666/-a_bcdefgh__3.mp4", None, None, None)
    about = json.loads(row.attributes)
    assert about["appearance"] == ["Young"] and about[LISTED] == [5.0, 9.5] and "box_square" not in about
    assert row.split_group == "-a_bcdefgh_" and "CelebV-HQ" in row.licence
    other = rows["celebv-hq--a_bcdefgh__3_0"]
    assert other.source is None and other.start_s == 5.0, "what is not there keeps what the metadata say"
    assert (catalog.there, catalog.released) == (1, 1)


def test_celebv_whole_videos_come_first(celebv: Path, tmp_path: Path) -> None:
    videos = touch(tmp_path / "v", "-a_bcdefgh_.mp4", "-a_bcdefgh__3.mp4")
    row = build_catalog("celebv-hq", videos, celebv).rows[0]
    assert (row.source, row.start_s) == ("-a_bcdefgh_.mp4", 5.0) and row.box is not None


def test_lengths_that_contradict_the_list_are_reported(celebv: Path, tmp_path: Path) -> None:
    rows = build_catalog("celebv-hq", touch(tmp_path / "v", "-a_bcdefgh__3.mp4"), celebv).rows
    assert check_lengths(rows, {"-a_bcdefgh__3.mp4": Extent(seconds=4.6)}) == []
    assert check_lengths(rows, {}) == check_lengths(rows, {"-a_bcdefgh__3.mp4": Extent()}) == []
    (problem,) = check_lengths(rows, {"-a_bcdefgh__3.mp4": Extent(seconds=60.0)})
    assert str(problem) == "-a_bcdefgh__3.mp4: is 60.0 s long, while the metadata list 4.5 s for this clip"
    # A clip under the name of its whole video.
    rows = build_catalog("celebv-hq", touch(tmp_path / "w", "-a_bcdefgh_.mp4"), celebv).rows
    (problem,) = check_lengths(rows, {"-a_bcdefgh_.mp4": Extent(seconds=4.5)})
    assert "its clip begins at 5.0 s" in str(problem) and "for 2 clips" in str(problem)


def test_every_published_clip_of_celebv_is_found(shared: Path, tmp_path: Path) -> None:
    """All 35,666, in one folder as they are shared."""
    metadata = shared / "metadata" / "CelebV-HQ"
    listed = build_catalog("celebv-hq", touch(tmp_path, "x.mp4"), metadata).rows
    names = [f"{row.key.removeprefix('celebv-hq-')}.mp4" for row in listed]
    assert len(names) == 35_666
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in names[:300]:
        (videos / name).touch()
    catalog = build_catalog("celebv-hq", videos, metadata)
    assert (catalog.there, catalog.released, catalog.missing_source) == (300, 300, 35_366) and not catalog.unused
