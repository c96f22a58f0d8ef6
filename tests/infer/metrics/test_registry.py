"""The registry: how clips are averaged, and that missing values are reported, not counted as 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest

from infer.metrics import METRICS, Clip, Measurement, measure
from infer.metrics.registry import metric

TRANSLATION = ("pose_translation_error",)


def clip(key: str, frames: int, off: float, **others: object) -> Clip:
    predicted = np.zeros((frames, 6))
    predicted[:, 3] = off
    known = {"predicted_pose": predicted, "true_pose": np.zeros((frames, 6))} | others
    return Clip(key=key, valid=np.ones(frames, bool), **known)  # type: ignore[arg-type]


def test_mean_over_clips_is_weighted_by_frames() -> None:
    (result,) = measure([clip("a", 10, 1.0), clip("b", 30, 2.0)], TRANSLATION)
    assert result.value == pytest.approx(1.75)
    assert result.per_clip == {"a": 1.0, "b": 2.0}
    assert result.reason_unavailable is None


def test_a_clip_without_a_value_is_left_out_and_said() -> None:
    clips = [clip("a", 10, 1.0), clip("b", 30, 2.0, true_pose=None)]
    (result,) = measure(clips, TRANSLATION)
    assert result.value == 1.0
    assert result.per_clip == {"a": 1.0, "b": None}
    assert result.reason_unavailable == "1 of 2 clips: needs true_pose"


def test_nothing_available() -> None:
    results = measure([Clip(key="a", valid=np.ones(9, bool))])
    assert [result.name for result in results] == list(METRICS)
    for result in results:
        assert result.value is None
        assert result.reason_unavailable == "needs " + " and ".join(METRICS[result.name].needs)
    assert {result.reason_unavailable for result in measure([])} == {"there are no clips"}
    empty = Clip(key="a", valid=np.zeros(9, bool), predicted_pose=np.zeros((9, 6)), true_pose=np.full((9, 6), np.nan))
    assert measure([empty], TRANSLATION)[0].reason_unavailable == "no frame to measure"


def test_clips_are_taken_one_at_a_time() -> None:
    alive: list[int] = []

    def clips() -> Iterator[Clip]:
        for number in range(3):
            alive.append(number)
            yield clip(str(number), 5, number)
            assert measurement._weights.keys() == {str(seen) for seen in alive}

    measurement = Measurement(TRANSLATION)
    for one in clips():
        measurement.add(one)
    assert measurement.results()[0].value == pytest.approx(1.0)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric beauty"):
        measure([], ("beauty",))
    with pytest.raises(ValueError, match="measured twice"):
        measure([clip("a", 5, 0), clip("a", 5, 0)], TRANSLATION)
    with pytest.raises(ValueError, match=r"predicted_pose is \(4, 6\), expected \(5, 6\)"):
        clip("a", 5, 0, predicted_pose=np.zeros((4, 6)))
    with pytest.raises(ValueError, match="true_pose is not finite in 1 of 5"):
        clip("a", 5, 0, true_pose=np.where(np.arange(5)[:, None] == 2, np.nan, np.zeros((5, 6))))


def test_every_metric_says_what_it_is() -> None:
    known = {field.name for field in fields(Clip)}
    for name, entry in METRICS.items():
        assert entry.name == name
        assert entry.meaning
        assert set(entry.needs) <= known
        assert entry.better in ("lower", "higher", None)
    with pytest.raises(AssertionError):
        metric("mesh_l1", "mm", needs=(), better="lower")
