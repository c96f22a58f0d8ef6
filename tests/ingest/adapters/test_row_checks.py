"""Absurd values in metadata: a problem of their own row, whatever they are, and the other rows are kept."""

from __future__ import annotations

import json
import math
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.adapters import hdtf
from ingest.adapters.row_checks import LONGEST_CLIP_S, LONGEST_VIDEO_S, check_row
from ingest.catalog import Catalog, build_catalog, read_catalog, write_catalog
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.schema import KEY_PATTERN, CatalogRow
from talkinghead.timebase import frames_in

NUMBERS = [
    "1e300",
    "-1",
    "nan",
    "inf",
    "-inf",
    "9" * 400,
    "9" * 5000,
    "-" + "9" * 400,
    "1e999",
    "0",
    "",
    "x",
    "٣",
    "1_0",
]
NUMBERS += ["0x10", "1e-300", "10000000000", "+5", "\x00", "1.5e5"]
TEXTS = [
    "../../etc/passwd",
    "a/b",
    "a.b",
    "..",
    ".",
    "\x1b[2J",
    "é" * 11,
    "a" * 300,
    "\ud800".encode("utf-8", "replace").decode(),
]
GOOD = "M2Ohb0FAaJU"


def _check(catalog: Catalog, folder: Path) -> None:
    """Everything that later steps do with a row works, and nothing is dropped silently."""
    for row in catalog.rows:
        assert KEY_PATTERN.fullmatch(row.key)
        check_row(row)
        canonical_json({"row": row.to_json(), "attributes": json.loads(row.attributes)})
        if row.start_s is not None and row.end_s is not None:
            assert 0 <= row.start_s < row.end_s <= LONGEST_VIDEO_S and row.end_s - row.start_s <= LONGEST_CLIP_S
            timedelta(seconds=120 + 10 * (row.end_s - row.start_s))
            frames_in(row.end_s - row.start_s)
        for value in (*(row.box or ()), row.box_width, row.box_height, row.frame_fps):
            assert value is None or (math.isfinite(value) and abs(value) <= 100_000)
    assert all(str(problem).isprintable() and len(str(problem)) < 1100 for problem in catalog.problems)
    storage = Storage(folder / "data")
    write_catalog(storage, catalog)
    assert read_catalog(storage, catalog.dataset) == catalog


def _metadata(tmp_path: Path, files: dict[str, str | bytes]) -> Path:
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    (folder := tmp_path / "in" / "metadata").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    return tmp_path / "in"


# --- HDTF -------------------------------------------------------------------------------------------------------------


def _hdtf(**files: str) -> dict[str, str | bytes]:
    good = {
        "annotion_time": "Good.mp4 00:10-00:20",
        "video_url": "Good http://h/good",
        "resolution": "Good.mp4 720",
        "crop_wh": "Good_0.mp4 0 10 0 10",
        "crop_ratio": "Good_0.mp4 1.2",
    }
    return {f"RD_{name}.txt": f"{files.get(name, '')}\n{text}\n" for name, text in good.items()}


@pytest.mark.parametrize("number", NUMBERS)
def test_hdtf_numbers(tmp_path: Path, number: str):
    for place in (
        {"annotion_time": f"Bad.mp4 00:{number}-00:40"},
        {"annotion_time": f"Bad.mp4 00:10-00:{number}"},
        {"annotion_time": f"Bad.mp4 {number}:10-{number}:40 00:10-00:20"},
        {"annotion_time": "Bad.mp4 00:10-00:20", "resolution": f"Bad.mp4 {number}", "crop_wh": "Bad_0.mp4 0 10 0 10"},
        {"annotion_time": "Bad.mp4 00:10-00:20", "resolution": "Bad.mp4 720", "crop_wh": f"Bad_0.mp4 0 {number} 0 10"},
        {
            "annotion_time": "Bad.mp4 00:10-00:20",
            "resolution": "Bad.mp4 720",
            "crop_wh": f"Bad_0.mp4 {number} 9 {number} 9",
        },
        {"annotion_time": "Bad.mp4 00:10-00:20", "crop_ratio": f"Bad_0.mp4 {number}"},
    ):
        catalog = build_catalog("hdtf", _metadata(tmp_path, _hdtf(**place)))
        assert "hdtf-RD-Good-000" in {row.key for row in catalog.rows}
        _check(catalog, tmp_path)


@pytest.mark.parametrize("name", TEXTS)
def test_hdtf_names_and_addresses(tmp_path: Path, name: str):
    files = _hdtf(annotion_time=f"{name}.mp4 00:10-00:20\nBad 00:01-00:02", video_url=f"Bad http://h/{name}")
    catalog = build_catalog("hdtf", _metadata(tmp_path, files))
    assert "hdtf-RD-Good-000" in {row.key for row in catalog.rows}
    _check(catalog, tmp_path)


def test_hdtf_with_very_many_intervals(tmp_path: Path):
    line = "Bad.mp4 " + "00:10-00:20 " * 5000
    catalog = build_catalog("hdtf", _metadata(tmp_path, _hdtf(annotion_time=line)))
    assert [row.key for row in catalog.rows] == ["hdtf-RD-Good-000"]
    assert any("5,000 intervals" in problem.message for problem in catalog.problems)
    _, problems = hdtf.read_videos(tmp_path / "in" / "metadata")
    assert any(problem.line == 1 for problem in problems)


# --- CelebV-HQ --------------------------------------------------------------------------------------------------------


def _clip(**changes: Any) -> dict[str, Any]:
    clip = {
        "ytb_id": GOOD,
        "duration": {"start_sec": 1.0, "end_sec": 2.5},
        "bbox": {"top": 0.1, "bottom": 0.6, "left": 0.2, "right": 0.7},
    }
    return {**clip, **changes}


def _info(tmp_path: Path, text: str) -> Catalog:
    catalog = build_catalog("celebv-hq", _metadata(tmp_path, {"celebvhq_info.json": text}))
    _check(catalog, tmp_path)
    return catalog


@pytest.mark.parametrize("number", ["1e300", "-1", "NaN", "Infinity", "-Infinity", "1e999", '"x"', "null", "[]", "{}"])
@pytest.mark.parametrize("digits", [1, 400, 5000])
def test_celebv_numbers(tmp_path: Path, number: str, digits: int):
    value = number if digits == 1 else "9" * digits
    for place in ("start_sec", "end_sec", "top", "bottom", "left", "right"):
        text = json.dumps({"clips": {f"{GOOD}_0": _clip(), f"{GOOD}_1": _clip()}})
        text = text.replace(f'"{place}": ', f'"{place}": {value}, "was": ', 1)
        catalog = _info(tmp_path, text)
        assert [row.key for row in catalog.rows] == [f"celebv-hq-{GOOD}_1"], place
        assert len(catalog.problems) == 1


@pytest.mark.parametrize("name", [*TEXTS, f"{GOOD}_{'1' * 90}", f"{GOOD}_٣", f"{GOOD}_1\n", GOOD, ""])
def test_celebv_names(tmp_path: Path, name: str):
    catalog = _info(
        tmp_path, json.dumps({"clips": {name: _clip(), f"{GOOD}_0": _clip(), f"{GOOD}_2": _clip(ytb_id=name)}})
    )
    assert f"celebv-hq-{GOOD}_0" in {row.key for row in catalog.rows}


def test_celebv_labels_are_bounded(tmp_path: Path):
    nested: Any = 0
    for _ in range(300):
        nested = [nested]
    clips = {
        f"{GOOD}_0": _clip(),
        f"{GOOD}_1": _clip(attributes={"emotion": "x" * 10**6}),
        f"{GOOD}_2": _clip(attributes={"emotion": float("nan")}),
        f"{GOOD}_3": _clip(attributes={"appearance": 7}),
        f"{GOOD}_4": _clip(attributes=7),
        f"{GOOD}_5": _clip(attributes={"emotion": nested}),
        f"{GOOD}_6": _clip(version="\ud800"),
    }
    keys = [row.key[-1] for row in _info(tmp_path, json.dumps({"clips": clips})).rows]
    assert keys == ["0", "5", "6"]
    for mapping in (["x" * 10**6], ["x"] * 10**4, "x", [7]):
        text = json.dumps({"meta_info": {"appearance_mapping": mapping}, "clips": clips})
        with pytest.raises(ValueError, match="appearance_mapping"):
            _info(tmp_path, text)


def test_csv_numbers_and_header(tmp_path: Path):
    lines = [f'{i},{GOOD},{GOOD}_{i}.mp4,"({n}, 5)","[0, 1, 0, 1]"' for i, n in enumerate(NUMBERS)]
    lines += [f'{i},{GOOD},{GOOD}_1{i}.mp4,"(1, 5)","[0, {n}, 0, 1]"' for i, n in enumerate(NUMBERS)]
    lines += [f'7,{GOOD},{GOOD}_999.mp4,"(1, 5)","[0, 1, 0, 1]"', f"8,{GOOD}", '9,"' + "x" * 200_000]
    text = " , VideoId , SaveIdName , Time , Bbox \n" + "\n".join(lines)
    catalog = build_catalog("celebv-hq", _metadata(tmp_path, {"clips.csv": text}))
    _check(catalog, tmp_path)
    assert f"celebv-hq-{GOOD}_999" in {row.key for row in catalog.rows}
    assert len(catalog.rows) + len(catalog.problems) >= len(lines)


# --- VFHQ -------------------------------------------------------------------------------------------------------------

NAME = "Clip+WSGW-7gHS6A+P0+C1+F2551-2669"
META = "H: {h}\nW: {w}\nFPS: {fps}\nCROP: {x0} {y0} {x1} {y1}\n"
VALUES = {"h": "1080", "w": "1920", "fps": "25.0", "x0": "616", "y0": "20", "x1": "1416", "y1": "820"}


@pytest.mark.parametrize("number", NUMBERS)
def test_vfhq_numbers(tmp_path: Path, number: str):
    other = NAME.replace("P0", "P1")
    for place in VALUES:
        files = {f"{other}.txt": META.format(**VALUES | {place: number}), f"{NAME}.txt": META.format(**VALUES)}
        catalog = build_catalog("vfhq", _metadata(tmp_path, dict(files)))
        assert "vfhq-WSGW-7gHS6A-P0-C1-F002551-002669" in {row.key for row in catalog.rows}
        _check(catalog, tmp_path)


@pytest.mark.parametrize("number", [number for number in NUMBERS if number] + ["1" * 20, "007"])
def test_vfhq_names(tmp_path: Path, number: str):
    lines = [f"Clip+WSGW-7gHS6A+P{number}+C1+F1-9", f"Clip+WSGW-7gHS6A+P0+C1+F{number}-9", NAME]
    catalog = build_catalog("vfhq", _metadata(tmp_path, {"id_train.txt": "\n".join(lines)}))
    assert "vfhq-WSGW-7gHS6A-P0-C1-F002551-002669" in {row.key for row in catalog.rows}
    _check(catalog, tmp_path)


def test_names_that_are_equal_as_keys_are_one_clip(tmp_path: Path):
    text = f"{NAME}\n{NAME.replace('P0', 'P00')}\n{NAME.replace('P0', 'P٠')}\n"
    catalog = build_catalog("vfhq", _metadata(tmp_path, {"id_train.txt": text}))
    assert [row.key for row in catalog.rows] == ["vfhq-WSGW-7gHS6A-P0-C1-F002551-002669"]
    assert len(catalog.problems) == 2


# --- anything ---------------------------------------------------------------------------------------------------------

pieces = st.lists(
    st.sampled_from(
        [*NUMBERS[:12], *TEXTS[:6], NAME, f"{GOOD}_1.mp4", "Good.mp4", "00:10-00:20", "(1, 2)", "[0,1,0,1]"]
    )
    | st.sampled_from([" ", "\n", ",", '"', "\r", "\t", "\x00", ":", "CROP ", "FPS ", "H ", "W ", "\u2028"])
    | st.text(max_size=5),
    max_size=30,
).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=pieces, raw=st.binary(max_size=40))
def test_any_content_ends_in_rows_and_problems(tmp_path: Path, text: str, raw: bytes):
    content = text.encode("utf-8", "replace") + raw
    for dataset, files in {
        "hdtf": {f"RD_{name}.txt": content for name in ("annotion_time", "video_url", "resolution", "crop_wh")},
        "celebv-hq": {"a.csv": b",VideoId,SaveIdName,Time,Bbox\n" + content},
        "vfhq": {"id_train.txt": content, f"{NAME}.txt": content},
    }.items():
        _check(build_catalog(dataset, _metadata(tmp_path, files)), tmp_path)  # pyright: ignore[reportArgumentType]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*_clip(), "attributes", "top"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clip=json_values, part=st.sampled_from([*_clip(), "attributes", "version"]), value=json_values, mapping=json_values
)
def test_any_clip_is_a_row_or_a_problem(tmp_path: Path, clip: Any, part: str, value: Any, mapping: Any):
    clips = {f"{GOOD}_0": _clip(), f"{GOOD}_1": clip, f"{GOOD}_2": _clip(**{part: value})}
    catalog = _info(tmp_path, json.dumps({"meta_info": {"x": mapping}, "clips": clips}))
    assert f"celebv-hq-{GOOD}_0" in {row.key for row in catalog.rows}
    assert len(catalog.rows) + len(catalog.problems) == 3


def test_rows_that_no_video_has_are_refused():
    def row(**changes: Any) -> CatalogRow:
        values = {"key": "a", "dataset": "vfhq", "source_id": "a", "source": None, "split_group": "a", "licence": "x"}
        return CatalogRow(**values | changes)

    check_row(row(start_s=3.0))
    check_row(row(start_s=0.0, end_s=LONGEST_CLIP_S))
    for changes in (
        {"start_s": math.nan, "end_s": 1.0},
        {"start_s": 0.0, "end_s": LONGEST_CLIP_S + 1},
        {"start_s": -1.0},
        {"start_s": math.inf},
        {"box": (0.0, 0.0, math.nan, 1.0)},
        {"box": (0.0, 0.0, 0.0, 1.0)},
        {"box": (0.0, 0.0, 1e9, 1.0)},
        {"box_width": 0.0},
        {"frame_fps": 1e9},
        {"url": "x" * 3000},
        {"person": "a\x1b"},
        {"attributes": "x" * 10**6},
    ):
        with pytest.raises(ValueError, match=r"."):
            check_row(row(**changes))
