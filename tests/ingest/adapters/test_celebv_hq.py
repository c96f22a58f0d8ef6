"""CelebV-HQ metadata: the official JSON and the CSV of the same clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.adapters import celebv_hq
from ingest.catalog import build_catalog
from talkinghead.schema import KEY_PATTERN


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "metadata" / "CelebV-HQ"


@pytest.fixture(scope="module")
def csv_rows(official: Path, tmp_path_factory: pytest.TempPathFactory):
    catalog = build_catalog("celebv-hq", tmp_path_factory.mktemp("empty"), official)
    assert catalog.problems == []
    return {row.key: row for row in catalog.rows}


def test_official_counts(csv_rows):
    assert len(csv_rows) == 35_666
    assert len({row.source_id for row in csv_rows.values()}) == 13_844
    assert round(sum(row.end_s - row.start_s for row in csv_rows.values()) / 3600, 1) == 64.4
    assert sum(row.source_id.startswith("-") for row in csv_rows.values()) == 510
    assert all(KEY_PATTERN.fullmatch(key) and len(row.source_id) == 11 for key, row in csv_rows.items())
    assert all(row.split_group == row.source_id == row.url[-11:] for row in csv_rows.values())


def test_json_and_csv_give_the_same_keys_and_boxes(official: Path, csv_rows, tmp_path: Path):
    (tmp_path / "celebvhq_info.json").write_bytes((official / "celebvhq_info.example.json").read_bytes())
    catalog = build_catalog("celebv-hq", tmp_path)
    assert [row.key for row in catalog.rows] == ["celebv-hq-M2Ohb0FAaJU_1", "celebv-hq-_0tf2n3rlJU_0"]
    for row in catalog.rows:
        same = csv_rows[row.key]
        assert (row.box, row.start_s, row.end_s, row.url) == (same.box, same.start_s, same.end_s, same.url)
    first = catalog.rows[0]
    assert (first.start_s, first.end_s) == (81.62, 86.17)
    assert first.box == (0.1764, 0.0, 0.7122, 0.9015)  # 0.02 outwards, clamped at the top
    assert (first.box_width, first.box_height) == (1.0, 1.0)
    labels = json.loads(first.attributes)
    assert labels["box_square"] == "min"
    assert labels["appearance"] == ["Young"]
    assert labels["emotion"] == {"labels": "neutral", "sep_flag": False}


sides = st.tuples(st.floats(0, 0.98), st.floats(0.001, 1)).map(lambda p: (p[0], min(1.0, p[0] + p[1])))


@given(sides, sides)
def test_expanded_box_holds_the_listed_one_and_stays_inside(vertical, horizontal):
    x0, y0, x1, y1 = celebv_hq.expanded_box((*vertical, *horizontal))
    assert 0 <= x0 <= horizontal[0] + 1e-6
    assert 0 <= y0 <= vertical[0] + 1e-6
    assert horizontal[1] - 1e-6 <= x1 <= 1
    assert vertical[1] - 1e-6 <= y1 <= 1
    assert x1 - x0 <= horizontal[1] - horizontal[0] + 0.04 + 1e-5


def _clip(**changes):
    clip = {
        "ytb_id": "-aaaaaaaaa_",
        "duration": {"start_sec": 1.0, "end_sec": 2.5},
        "bbox": {"top": 0.1, "bottom": 0.6, "left": 0.2, "right": 0.7},
    }
    return {**clip, **changes}


def test_bad_clips_are_listed_and_the_others_kept(tmp_path: Path):
    clips = {
        "-aaaaaaaaa__3": _clip(),
        "-aaaaaaaaa__112_0": {k: v for k, v in _clip().items() if k != "ytb_id"},
        "nothing": _clip(),
        "-aaaaaaaaa__4": _clip(duration={"start_sec": 3, "end_sec": 3}),
        "-aaaaaaaaa__5": _clip(bbox={"top": 0.1, "bottom": 1.6, "left": 0.2, "right": 0.7}),
        "-aaaaaaaaa__6": _clip(bbox=None),
        "-aaaaaaaaa__7": "?",
        "-aaaaaaaaa__8": {"ytb_id": "-aaaaaaaaa_"},
        "-aaaaaaaaa__9": _clip(duration={"start_sec": float("nan"), "end_sec": 3}),
    }
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "celebvhq_info.json").write_text(json.dumps({"mete_info": {}, "clips": clips}))
    (tmp_path / "-aaaaaaaaa_.mkv").touch()
    catalog = build_catalog("celebv-hq", tmp_path)
    assert [row.key for row in catalog.rows] == ["celebv-hq--aaaaaaaaa__112_0", "celebv-hq--aaaaaaaaa__3"]
    assert {row.source for row in catalog.rows} == {"-aaaaaaaaa_.mkv"}
    assert len(catalog.problems) == len(clips) - 2


def test_bad_csv_lines_are_listed_with_their_line(tmp_path: Path):
    good = '0,M2Ohb0FAaJU,M2Ohb0FAaJU_1.mp4,"(81.62, 86.17)","[0.0, 0.8815, 0.1964, 0.6922]"'
    text = f',VideoId,SaveIdName,Time,Bbox\n{good}\n1,x\n2,M2Ohb0FAaJU,M2Ohb0FAaJU_2.mp4,"(1, two)","[0,1,0,1]"\n'
    (tmp_path / "videos.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    catalog = build_catalog("celebv-hq", tmp_path)
    assert [row.key for row in catalog.rows] == ["celebv-hq-M2Ohb0FAaJU_1"]
    assert [problem.line for problem in catalog.problems] == [3, 4]


@pytest.mark.parametrize("content", ["{", "[]", '{"clips": []}'])
def test_a_file_that_is_not_the_metadata_is_refused(tmp_path: Path, content: str):
    (tmp_path / "celebvhq_info.json").write_text(content)
    with pytest.raises(ValueError, match=r"celebvhq_info\.json"):
        build_catalog("celebv-hq", tmp_path)
