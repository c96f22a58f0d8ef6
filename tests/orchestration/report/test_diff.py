"""The difference of two annotation versions is what was changed, in the units it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from orchestration.report.diff import VersionDifference, compare_versions
from talkinghead.files.storage import Storage
from talkinghead.schema import SampleIndex
from tests.support.indexes import open_index
from tests.support.report_data import Clip, tiny_annotation, write_data

SHIFT = 96 / 16384  # of the image: whole steps of the stored landmarks, and of the stored mesh


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("diff"))
    clips = [Clip(key=f"k{number}") for number in range(6)]
    write_data(
        storage,
        clips,
        ("v1", "v2"),
        annotation=lambda piece, version: tiny_annotation(
            30,
            shift=SHIFT * int(piece.key[1:]) * (version == "v2"),
            missing={"v1": 3, "v2": 5}[version] if piece.key == "k2" else 0,
        ),
    )
    return storage


def rows(storage: Storage, version: str) -> list[SampleIndex]:
    return list(open_index(storage, version).rows())


def compare(storage: Storage, most: int = 200) -> VersionDifference:
    return compare_versions(storage, ("v1", rows(storage, "v1")), ("v2", rows(storage, "v2")), most=most)


def test_distances_are_in_pixels_at_512_and_millimetres(data: Storage) -> None:
    found = {clip.key: clip for clip in compare(data).clips}
    for number in range(6):
        clip = found[f"k{number}"]
        assert clip.landmark_mean_px == pytest.approx(SHIFT * number * 512, abs=1e-4)
        assert clip.landmark_max_px == pytest.approx(SHIFT * number * 512, abs=1e-4)
        assert clip.mesh_mean_mm == pytest.approx(SHIFT * number * 10, abs=10 / 1024)
    assert (found["k2"].frames, found["k2"].lost, found["k2"].gained) == (25, 2, 0)


def test_most_changed_come_first_and_totals_weigh_by_frames(data: Storage) -> None:
    difference = compare(data)
    assert [clip.key for clip in difference.clips] == ["k5", "k4", "k3", "k2", "k1", "k0"]
    value = difference.to_json()
    frames = np.array([30, 30, 25, 30, 30, 30])
    mean = (frames * np.arange(6)).sum() / frames.sum() * SHIFT * 512
    assert value["landmark_mean_px"] == pytest.approx(mean, abs=1e-4)
    assert (value["frames"], value["frames_lost"], value["frames_gained"]) == (175, 2, 0)
    assert (value["compared"], value["common"], value["added"], value["removed"]) == (6, 6, 0, 0)


def test_nothing_changed_is_zero(data: Storage) -> None:
    index = rows(data, "v1")
    value = compare_versions(data, ("v1", index), ("v1", index)).to_json()
    assert value["landmark_max_px"] == value["mesh_max_mm"] == value["frames_lost"] == 0


def test_a_part_is_compared_where_there_are_many(data: Storage) -> None:
    assert len(compare(data, most=2).clips) == 2
    assert compare(data, most=2).common == 6
    assert compare(data, most=2).clips == compare(data, most=2).clips


def test_kept_and_dropped_are_counted_over_the_whole_index(data: Storage) -> None:
    old, new = rows(data, "v1"), rows(data, "v2")
    old[0] = dataclasses.replace(old[0], keep=False, reason="blurred")
    new[1] = dataclasses.replace(new[1], keep=False, reason="profile")
    difference = compare_versions(data, ("v1", old), ("v2", [*new, dataclasses.replace(new[0], key="new")]), most=0)
    assert (difference.now_kept, difference.now_dropped, difference.added) == (1, 1, 1)
    assert difference.dropped_reasons == {"profile": 1}
    assert difference.to_json()["landmark_mean_px"] is None


def test_what_cannot_be_read_is_listed_and_the_rest_compared(data: Storage, tmp_path: Path) -> None:
    old, new = rows(data, "v1"), rows(data, "v2")
    new[0] = dataclasses.replace(new[0], annotation=[])
    difference = compare_versions(data, ("v1", old), ("v2", new))
    assert len(difference.clips) == 5
    [line] = difference.unreadable
    assert line.startswith("k0: ") and "k0.landmarks.npy" in line
