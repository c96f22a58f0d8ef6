"""Clips that speak: with and without the column, in the user's own words, and in a training that goes on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import read_manifest
from shards.reader import SPEECH, ShardReader
from shards.selection import Selection
from shards.speech_choice import COLUMN, LEAST_SHARE, with_audible_sound, with_speech
from talkinghead.annotation import blank_arrays
from talkinghead.derived import Derived
from talkinghead.files.storage import Storage
from talkinghead.schema import SampleIndex
from tests.support.derived_data import TOY, add_version
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

SHARES = (0.9, 0.0, None, 0.15, 0.25, 0.9)
"""Share of speech in each clip; the third could not be measured, the last has no sound."""
ACTIVITY = replace(TOY, name=COLUMN, arrays=(), scores=("speech_share",), needs=("wav",))
"""The column, without its array: nothing here reads it."""


def build(root: Path) -> Storage:
    clips = []
    for number in range(len(SHARES)):
        key, group = f"folder-clip_{number}-{number:06x}", f"group{number}"
        audio, images = np.full(6400, 0.1, np.float32), np.zeros((10, 64, 64, 3), np.uint8)
        clips.append(
            PackedClip(
                key=key,
                num_frames=10,
                media=media_members(key, images, audio, source_id=key, group=group),
                annotation=annotation_members(key, blank_arrays(10)),
                split="train",
                split_group=group,
                scores={"audio_missing": float(number == 5), "audio_silent": 0.0, "audio_padded_fraction": 0.0},
            )
        )
    return pack_data(root, clips, min_shards=2)


def make_activity(storage: Storage) -> None:
    def listen(row: SampleIndex, valid: np.ndarray) -> Derived:
        return Derived(scores={"speech_share": SHARES[int(row.key.split("_")[1].split("-")[0])]})

    add_version(storage, ACTIVITY, listen, pins={})


@pytest.fixture
def data(tmp_path: Path) -> Storage:
    return build(tmp_path / "data")


def chosen(data: Storage, selection: Selection, join: tuple[str, ...] = ()) -> list[int]:
    """Numbers of the clips that a reader with these rules has."""
    return sorted(
        int(key.split("_")[1].split("-")[0]) for key in ShardReader(data, join=join, **selection.arguments()).keys
    )


def test_without_the_column_all_audible_clips_are_taken_and_the_log_says_how_to_make_it(
    data: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        selection = with_speech(Selection(), read_manifest(data))
    [record] = caplog.records
    assert chosen(data, selection) == [0, 1, 2, 3, 4]
    assert "make derive COLUMNS=speech_activity" in record.getMessage() and "\n" not in record.getMessage()


def test_with_the_column_clips_without_speech_are_left_out(data: Storage, caplog: pytest.LogCaptureFixture) -> None:
    make_activity(data)
    selection = with_speech(Selection(), read_manifest(data))
    assert not caplog.records, "nothing to make"
    assert chosen(data, selection) == [0, 4]
    assert ShardReader(data, **selection.arguments()).joined[COLUMN], "a run pins what the rule opened"
    assert f"speech_share below {LEAST_SHARE}" in caplog.text


@pytest.mark.parametrize("name", ["speech_share", f"{COLUMN}.speech_share"])
def test_the_users_own_bound_counts(data: Storage, name: str) -> None:
    make_activity(data)
    manifest = read_manifest(data)
    assert chosen(data, with_speech(Selection(at_least={name: 0.0}), manifest)) == [0, 1, 3, 4]
    assert chosen(data, with_speech(Selection(at_most={name: 0.2}), manifest)) == [1, 3]


def test_a_training_that_goes_on_keeps_its_clips(data: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """The column was made after it began; and the other way round, it is joined by its version."""
    before = with_speech(Selection(), read_manifest(data))
    caplog.clear()
    make_activity(data)
    manifest = read_manifest(data)
    assert with_speech(Selection(), manifest, begun=True) == before and not caplog.records
    join = (manifest.derived(COLUMN).version,)
    assert with_speech(Selection(), manifest, join, begun=True) == with_speech(Selection(), manifest)
    assert chosen(data, with_speech(Selection(), manifest, join, begun=True), join) == [0, 4]


def test_audible_sound_and_the_lower_of_two_bounds() -> None:
    assert with_audible_sound({}) == SPEECH
    assert with_audible_sound({"audio_padded_fraction": 0.01, "jitter_px": 3.0}) == {
        **SPEECH,
        "audio_padded_fraction": 0.01,
        "jitter_px": 3.0,
    }
    assert with_audible_sound({"audio_silent": 1.0})["audio_silent"] == 0
