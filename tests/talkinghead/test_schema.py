"""Round trips and limits of the data contract: keys, tar, annotation columns, keyed randomness, time base."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from talkinghead import rng, timebase
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, COLUMNS, check_arrays
from talkinghead.column import decode_column, encode_column
from talkinghead.provenance import canonical_json, provenance_key
from talkinghead.sampletar import END_OF_ARCHIVE, pack_samples, write_sample
from talkinghead.schema import (
    KEY_PATTERN,
    CatalogRow,
    ClipInfo,
    check_key,
    check_name,
    check_relative,
    check_suffix,
    check_version,
    cut_key,
    path_key,
)
from tests.support.shard_data import media_contents

keys = st.from_regex(r"\A[A-Za-z0-9_-]{1,90}\Z")


@given(st.text(max_size=300))
def test_any_path_gives_a_legal_key(path: str) -> None:
    assert KEY_PATTERN.fullmatch(f"folder-{path_key(path)}")


def test_different_paths_give_different_keys() -> None:
    paths = ["a b.mp4", "a-b.mp4", "a_b.mp4", "a.b.mp4", "ä.mp4", "a.mp4", "x/a.mp4", "-a.mp4", "$(a).mp4", "日本.mp4"]
    assert len({path_key(path) for path in paths}) == len(paths)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "ä", "x" * 91, "a\n"])
def test_illegal_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        check_key(key)


ESCAPES = [
    "",
    "..",
    ".",
    "a/b",
    "/etc/passwd",
    "../x",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "-->",
    "x" * 500,
    None,
    7,
    ["a"],
]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("check", [check_key, check_version, check_suffix, lambda name: check_name(name, "score")])
def test_no_name_leads_out_of_a_folder(check, name) -> None:
    with pytest.raises(ValueError) as raised:
        check(name)
    said = str(raised.value)
    assert said.isprintable() and len(said) < 250


def test_names_as_we_write_them() -> None:
    for suffix in ("mp4", "ann.json", "pose_matrix.npy", "latents.json"):
        assert check_suffix(suffix) == suffix
    for version in ("v1", "V2-b_c", "latents-0123456789ab"):
        assert check_version(version) == version
    assert check_name("celebv-hq", "data set") == "celebv-hq"
    assert check_relative("Radio 1/ä..b/c.mp4") == "Radio 1/ä..b/c.mp4"


@pytest.mark.parametrize("path", ["", "/a.mp4", "../a.mp4", "a/../../b.mp4", "a/..", "a\0.mp4"])
def test_sources_lie_below_source(path: str) -> None:
    with pytest.raises(ValueError, match="must be relative"):
        check_relative(path)
    with pytest.raises(ValueError, match="must be relative"):
        CatalogRow(key="k", dataset="hdtf", source_id="i", source=path, split_group="g", licence="l")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "/home/somebody/a.mp4"}, "must be relative"),
        ({"key": "../x"}, "key '../x'"),
        ({"clip_key": "a.b"}, "key 'a.b'"),
        ({"dataset": "../../x"}, "data set"),
        ({"num_frames": -1}, "-1 frames"),
        ({"num_frames": 1e300}, "num_frames is 1e"),
        ({"num_frames": 10**300}, "num_frames is 1000"),
        ({"width": True}, "width is True"),
        ({"source_pts": ["0"]}, "source_pts is '0'"),
        ({"source_pts": {"0": 1}}, "source_pts is {'0': 1}"),
        ({"start_s": float("nan")}, "start_s is nan"),
        ({"crop_box_px": [1.0]}, "crop_box_px is"),
        ({"crop_rule": "other"}, "'box' or 'face' or 'none'"),
        ({"notes": None}, "notes is None"),
        ({"surprise": 1}, "no field 'surprise'"),
        ({"schema_version": "1"}, "schema '1'"),
        ({"damaged_frames": [3, 2]}, "damaged frames must be ascending"),
        ({"damaged_frames": [2, 2]}, "damaged frames must be ascending"),
        ({"damaged_frames": [-1]}, "damaged frames must be ascending"),
        ({"damaged_frames": [10**9]}, "damaged frames must be ascending"),
        ({"damaged_frames": [0.5]}, "damaged_frames is 0.5"),
        ({"damaged_frames": [True]}, "damaged_frames is True"),
        ({"damaged_frames": "0"}, "damaged_frames is '0'"),
        ({"audio_gap_samples": -1}, "audio_gap_samples is -1"),
        ({"audio_nan_samples": 1e300}, "audio_nan_samples is 1e"),
        ({"source_clock_jumps": -5}, "source_clock_jumps is -5"),
        ({"source_damaged_stamps": None}, "source_damaged_stamps is None"),
        ({"source_hdr": "HDR10+"}, "'PQ' or 'HLG'"),
        ({"source_mirrored": 1}, "source_mirrored is 1"),
        ({"source_interlaced": "yes"}, "source_interlaced is 'yes'"),
    ],
)
def test_clip_info_of_a_stranger(changes: dict, said: str) -> None:
    whole = json.loads(media_contents(0)["json"])
    assert ClipInfo.from_json(json.dumps(whole)).num_frames == whole["num_frames"]
    with pytest.raises(ValueError, match=re.escape(said)):
        ClipInfo.from_json(json.dumps(whole | changes))


def test_fields_that_were_added_later_are_written_only_where_they_say_something() -> None:
    """A clip with nothing to say keeps the bytes that older releases wrote, and those can be read."""
    old = json.loads(media_contents(0)["json"])
    added = {
        "damaged_frames", "audio_gap_samples", "audio_nan_samples", "source_mirrored", "source_hdr",
        "source_interlaced", "source_clock_jumps", "source_damaged_stamps", "sound_shift_frames",
    }  # fmt: skip
    old = {name: value for name, value in old.items() if name not in added}
    info = ClipInfo.from_json(json.dumps(old))
    assert canonical_json(info.to_json()) == canonical_json(old) and "schema_version" in info.to_json()
    said = {"damaged_frames": [0, 2], "source_hdr": "HLG", "source_mirrored": True, "source_clock_jumps": 1}
    full = dataclasses.replace(info, **said)
    assert json.loads(canonical_json(full.to_json())) == {**old, **said}
    assert ClipInfo.from_json(canonical_json(full.to_json())) == full


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff", b'{"schema_version": 1}'])
def test_what_is_no_clip_info(data: bytes) -> None:
    with pytest.raises(ValueError):
        ClipInfo.from_json(data)


@given(st.dictionaries(keys, st.lists(st.binary(max_size=1500), min_size=1, max_size=3), max_size=4))
def test_tar_round_trip_is_deterministic(samples: dict[str, list[bytes]]) -> None:
    contents = [(key, {f"m{i}.bin": data for i, data in enumerate(parts)}) for key, parts in samples.items()]
    tar = pack_samples(contents)
    assert tar == pack_samples(contents)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        read = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    assert read == [(f"{key}.{suffix}", data) for key, parts in contents for suffix, data in parts.items()]
    assert tar.endswith(END_OF_ARCHIVE) and len(tar) % 512 == 0


def test_members_lie_where_they_are_said_to() -> None:
    buffer = io.BytesIO()
    members = write_sample(buffer, 0, "key", {"json": b"{}", "mp4": b"v" * 600})
    members += write_sample(buffer, buffer.tell(), "other", {"json": b"[]"})
    data = buffer.getvalue() + END_OF_ARCHIVE
    assert [data[m.offset : m.offset + m.size] for m in members] == [b"{}", b"v" * 600, b"[]"]


@given(hnp.arrays(np.float32, (3, 478, 3), elements=st.floats(-1.875, 1.875, width=32)))
def test_landmarks_lose_less_than_the_stated_error(values: np.ndarray) -> None:
    values[1] = np.nan
    back = decode_column(COLUMN["landmarks"], encode_column(COLUMN["landmarks"], values))
    assert np.isnan(back[1]).all()
    assert np.abs(back[[0, 2]] - values[[0, 2]]).max() * 512 <= 0.05


@given(hnp.arrays(np.float32, (2, 468, 3), elements=st.floats(-31, 31, width=32)))
def test_mesh_loses_less_than_the_stated_error(values: np.ndarray) -> None:
    back = decode_column(COLUMN["mesh"], encode_column(COLUMN["mesh"], values))
    assert np.abs(back - values).max() <= 0.002


def test_values_beyond_the_range_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        encode_column(COLUMN["landmarks"], np.full((1, 478, 3), 2.5, np.float32))


def some_arrays(frames: int = 4) -> dict[str, np.ndarray]:
    arrays = {column.name: np.zeros((frames, *column.shape), np.float32) for column in COLUMNS}
    arrays["valid"] = np.ones(frames, bool)
    return arrays


def test_every_column_round_trips() -> None:
    for name, values in some_arrays().items():
        back = decode_column(COLUMN[name], encode_column(COLUMN[name], values))
        assert back.dtype == (bool if name == "valid" else np.float32) and np.array_equal(back, values)
    assert {column.member for column in COLUMNS} | {"ann.json"} == set(ANNOTATION_MEMBERS)


def test_missing_face_is_nan_with_valid_zero_and_nothing_else() -> None:
    arrays = some_arrays()
    assert check_arrays(arrays) == 4
    arrays["valid"][2] = False
    with pytest.raises(ValueError, match="not NaN exactly where valid is 0"):
        check_arrays(arrays)
    for name in ("landmarks", "mesh", "pose", "pose_matrix"):
        arrays[name][2] = np.nan
    assert check_arrays(arrays) == 4
    arrays["mesh"][0, 5, 1] = np.nan
    with pytest.raises(ValueError, match="mesh"):
        check_arrays(arrays)
    with pytest.raises(ValueError, match="lacks pose"):
        check_arrays({name: values for name, values in arrays.items() if name != "pose"})


@given(st.lists(st.one_of(st.integers(), st.text()), min_size=1, max_size=4))
def test_keyed_generators_depend_on_the_key_alone(parts: list[int | str]) -> None:
    first = rng.generator(1, "noise", *parts).standard_normal(4)
    rng.generator(2, "noise", *parts).standard_normal(4)
    assert np.array_equal(first, rng.generator(1, "noise", *parts).standard_normal(4))
    assert 0 <= rng.uniform(0, "split", *parts) < 1


def test_keys_do_not_run_into_each_other() -> None:
    assert rng.key_bits("ab", "c") != rng.key_bits("a", "bc") != rng.key_bits("abc")
    assert rng.key_bits(1) != rng.key_bits("1")


def test_uniform_is_uniform() -> None:
    values = np.sort([rng.uniform(0, "u", i) for i in range(2000)])
    assert np.abs(values - np.linspace(0, 1, 2000)).max() < 0.04


@given(st.integers(0, 10**7))
def test_frame_times_round_trip(frame: int) -> None:
    assert timebase.frames_in(timebase.frame_time(frame)) == frame
    assert timebase.sample_at(timebase.frame_time(frame)) == timebase.samples_in(frame)


def test_catalog_row_round_trips_and_checks() -> None:
    row = CatalogRow(
        key="hdtf-RD-Radio1-000",
        dataset="hdtf",
        source_id="RD_Radio1",
        source=None,
        box=(0, 0, 1, 1),
        split_group="g",
        licence="CC-BY-4.0",
        notes=("a",),
    )
    assert CatalogRow.from_json(row.to_json()) == row
    with pytest.raises(ValueError, match="empty"):
        CatalogRow(**{**row.to_json(), "start_s": 3.0, "end_s": 3.0})
    assert cut_key(row.key, 3) == "hdtf-RD-Radio1-000-cut03"


def test_provenance_key_sees_every_part() -> None:
    base = {"parameters": {"a": 1}, "inputs": ["x"], "models": {"m": "1"}, "libraries": {"l": "1"}}
    made = {provenance_key("job", 1, **base), provenance_key("job", 2, **base), provenance_key("other", 1, **base)}
    for name in base:
        made.add(provenance_key("job", 1, **{**base, name: {"changed": True}}))
    assert len(made) == 7
    assert provenance_key("job", 1, **base) == provenance_key("job", 1, **dict(reversed(base.items())))
    assert canonical_json({"b": 1, "a": (1, 2)}) == b'{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(math.nan)
