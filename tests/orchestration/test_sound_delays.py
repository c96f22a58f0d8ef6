"""Delays of sources: which are clear, what counts for them, and sources that were moved before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotate.sync import SCORES
from orchestration import plans
from orchestration.sound_delays import clear_delay, measured_delays
from talkinghead.annotation import blank_arrays
from talkinghead.derived import Derived
from talkinghead.files.storage import Storage
from tests.support.derived_data import TOY, add_version
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

IMAGES = np.zeros((80, 64, 64, 3), np.uint8)
SYNC = replace(TOY, name="sync", arrays=(), scores=SCORES, needs=("mesh",))


@pytest.mark.parametrize(
    ("lags", "delay"),
    [
        ((), 0),
        ((1.0,), 0),
        ((-1.0,), 0),
        ((3.0,), 0),
        ((4.0,), 3),
        ((-2.0,), -3),
        ((7.0, 6.0, 6.0), 5),
        ((6.0, 4.0), 4),
        ((6.0, 3.0), 0),
        ((6.0, 6.0, -5.0), 0),
    ],
)
def test_a_delay_is_clear_where_the_clips_agree_and_it_is_large(lags: tuple[float, ...], delay: int) -> None:
    assert clear_delay(lags) == delay


SCORE_ROWS = {  # name of the clip: num_frames, lag, correlation, confidence, halves apart
    "late": (80, 6.0, 0.3, 0.3, 1.0),
    "short": (74, 6.0, 0.3, 0.3, 0.0),
    "weak": (80, 6.0, 0.19, 0.3, 0.0),
    "unsure": (80, 6.0, 0.3, 0.24, 0.0),
    "apart": (80, 6.0, 0.3, 0.3, 2.0),
    "unknown": (80, None, None, None, None),
    "fine": (80, 1.0, 0.3, 0.3, 0.0),
    "moved": (80, 1.0, 0.3, 0.3, 0.0),
}


def build(root: Path) -> Storage:
    clips = [
        PackedClip(
            key=(key := f"folder-{name}-000000"),
            num_frames=frames,
            media=media_members(key, IMAGES[:frames], np.zeros(640 * frames, np.float32), source_id=name, group=name),
            annotation=annotation_members(key, blank_arrays(frames)),
            split="train",
            split_group=name,
            scores={},
        )
        for name, (frames, *_) in SCORE_ROWS.items()
    ]
    storage = pack_data(root, clips, min_shards=1)
    keys = {clip.key: clip.key.split("-")[1] for clip in clips}
    plan = plans.IngestPlan(
        units=dict.fromkeys(keys, "0" * 16),
        contents={key: f"content of {name}" for key, name in keys.items()},
        settings={},
        sound_delays={"content of moved": 4},
    )
    plans.write_plan(storage, plans.ingest_plan_name("folder"), plan)
    return storage


def test_sources_with_a_clear_delay_are_found_by_content(tmp_path: Path) -> None:
    storage = build(tmp_path / "data")
    with pytest.raises(ValueError, match="COLUMNS=sync"):
        measured_delays(storage)
    names = ("sync_lag", "sync_correlation", "sync_confidence", "sync_halves_apart")

    def scores(row, valid) -> Derived:
        return Derived(scores=dict(zip(names, SCORE_ROWS[row.key.split("-")[1]][1:], strict=True)))

    add_version(storage, SYNC, scores, pins={})
    assert measured_delays(storage) == {"content of late": 5, "content of moved": 4}
