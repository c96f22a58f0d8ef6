"""Measurements of clips that several processes share: put together, they are those of one process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.evaluation.measured_clips import MeasuredClips, joining, one_process
from infer.metrics import Clip
from talkinghead.rng import generator

KEYS = ("d", "a", "c", "b", "e")
METRICS = ("pose_l1", "beat_alignment")


def measured(keys: list[str]) -> MeasuredClips:
    """Measurements of two subjects; of every clip the sound is missing, and \"c\" shows no face."""
    found = MeasuredClips(METRICS)
    for key in keys:
        pose = generator(0, "poses", key).normal(size=(8 + ord(key) % 3, 6))
        valid = np.full(len(pose), key != "c")
        if found.count(key, valid):
            for name, shift in (("model", 0.5), ("still", 2.0)):
                role = "prediction" if name == "model" else "baseline"
                found.add(name, role, Clip(key=key, valid=valid, predicted_pose=pose + shift, true_pose=pose))
    return found


def results(found: MeasuredClips) -> list[object]:
    return [found.clips, *((name, role, one.results()) for name, (role, one) in found.subjects.items())]


@given(st.lists(st.integers(0, 2), min_size=len(KEYS), max_size=len(KEYS)))
def test_shares_put_together_are_the_whole(ranks: list[int]) -> None:
    """However clips are shared out, also where a process has none."""
    parts = [measured([key for key, rank in zip(KEYS, ranks, strict=True) if rank == own]) for own in range(3)]
    whole = results(one_process(measured(list(KEYS))))
    assert results(joining(lambda _: parts, KEYS)(parts[0])) == whole


def test_a_clip_that_two_have_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="a is measured twice"):
        MeasuredClips.together([measured(["a", "b"]), measured(["a"])], KEYS)
