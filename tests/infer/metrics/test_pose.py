"""Metrics of poses and rhythm: values computed by hand, invariances, and reasons for missing values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.metrics import METRICS, Clip, Unavailable
from infer.metrics.pose import TOLERANCE_S, head_beats, speech_onsets
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix

ERRORS = ("pose_l1", "pose_rotation_error", "pose_translation_error")
OF_ITSELF = ("pose_diversity", "pose_jitter", "pose_largest_step")


def of(name: str, clip: Clip) -> float:
    return METRICS[name].of(clip)


def pair(predicted: np.ndarray, true: np.ndarray) -> Clip:
    valid = np.isfinite(true).all(axis=1)
    return Clip(key="a", valid=valid, predicted_pose=predicted, true_pose=true)


def clicks(times: list[float], seconds: float) -> np.ndarray:
    """Audio at 16 kHz with short bursts of noise at these times in seconds."""
    audio = np.zeros(round(seconds * 16000))
    rng = np.random.default_rng(0)
    for time in times:
        first = round(time * 16000)
        audio[first : first + 800] += rng.normal(0, 0.2, 800) * np.exp(-np.arange(800) / 200)
    return audio


def nodding(beats_s: float, seconds: float, offset_s: float = 0.0) -> np.ndarray:
    """Poses `[F, 6]` whose pitch reverses, and so is slowest, every `beats_s` seconds from `offset_s` on."""
    time = np.arange(round(seconds * 25)) / 25
    pose = np.zeros((len(time), 6))
    pose[:, 0] = 5 * np.cos(np.pi * (time - offset_s) / beats_s)
    return pose


def test_errors_by_hand() -> None:
    true = np.zeros((2, 6))
    predicted = np.array([[3.0, 0, 0, 0, 0, 0], [0, -4, 0, 2, 1, 2]])
    clip = pair(predicted, true)
    assert of("pose_l1", clip) == pytest.approx((3 + 4 + 2 + 1 + 2) / 12)
    assert of("pose_rotation_error", clip) == pytest.approx(3.5)
    assert of("pose_translation_error", clip) == pytest.approx(1.5)
    assert of("pose_diversity", clip) == pytest.approx((1.5 + 2 + 0) / 3)
    assert of("pose_largest_step", clip) == pytest.approx(4)


def test_jitter_by_hand() -> None:
    pose = np.zeros((4, 6))
    pose[:, 1], pose[:, 5] = [0, 1, 4, 9], [0, 5, -5, 0]
    assert of("pose_jitter", pair(pose, pose)) == pytest.approx(2 * 25**2)


poses = st.tuples(*[st.floats(-60, 60)] * 3, *[st.floats(-5, 5)] * 3).map(np.array)


@given(st.lists(poses, min_size=1, max_size=6).map(np.array), poses)
def test_rotation_error_is_the_angle_between_and_ignores_a_common_turn(pose: np.ndarray, turn: np.ndarray) -> None:
    zero = np.zeros_like(pose)
    trace = np.trace(matrix_from_pose(pose)[:, :3, :3], axis1=1, axis2=2)
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))).mean()
    assert of("pose_rotation_error", pair(pose, zero)) == pytest.approx(angle, abs=1e-4)
    both = (pose_from_matrix(matrix_from_pose(turn) @ matrix_from_pose(values)) for values in (pose, zero))
    assert of("pose_rotation_error", pair(*both)) == pytest.approx(angle, abs=1e-4)
    assert [of(name, pair(pose, pose)) for name in ERRORS] == [0, 0, 0]


def test_frames_without_a_face_do_not_count() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(9, 6)), rng.normal(size=(9, 6))
    true[4] = np.nan
    wild = predicted.copy()
    wild[4] = 900
    for name in ERRORS + OF_ITSELF:
        assert of(name, pair(predicted, true)) == of(name, pair(wild, true)) > 0


def test_a_still_head() -> None:
    clip = replace(pair(np.zeros((100, 6)), np.zeros((100, 6))), audio=clicks([1, 2, 3], 4))
    assert [of(name, clip) for name in (*OF_ITSELF, "beat_alignment")] == [0] * 4


def test_onsets_are_the_clicks() -> None:
    times = [0.5, 0.9, 1.6, 2.2, 3.1]
    np.testing.assert_allclose(speech_onsets(clicks(times, 4)), times, atol=0.02)
    assert len(speech_onsets(np.zeros(16000))) == 0
    assert len(speech_onsets(np.zeros(1))) == 0
    assert len(speech_onsets(np.full(16000, 0.5))) <= 1


def test_onsets_of_a_long_recording_are_those_of_its_pieces() -> None:
    times = [float(time) for time in np.arange(0.5, 89.5, 0.75)]
    np.testing.assert_allclose(speech_onsets(clicks(times, 90)), times, atol=0.02)


def test_beats_are_where_the_head_turns_round() -> None:
    """One beat each second, at 0.5, 1.5, …; those nearest the ends may be lost."""
    found = head_beats(nodding(1.0, 8, 0.5), np.ones(200, bool), 25)
    expected = np.arange(0.5, 8)
    assert len(found) >= 6
    assert np.abs(found[:, None] - expected).min(axis=1).max() < 0.03
    valid = np.ones(200, bool)
    valid[85:90] = False  # around 3.5 s
    without = head_beats(nodding(1.0, 8, 0.5), valid, 25)
    assert np.abs(without - 3.5).min() > 0.3
    assert len(without) == len(found) - 1


@pytest.mark.parametrize("off", [0.0, 0.06, 0.12, 0.24])
def test_beat_alignment_falls_with_the_distance(off: float) -> None:
    """Every click has a beat that is `off` seconds later."""
    clip = Clip(
        key="a",
        valid=np.ones(200, bool),
        predicted_pose=nodding(1.0, 8, 0.5 + off),
        audio=clicks([1.5, 2.5, 3.5, 4.5, 5.5], 8),
    )
    assert of("beat_alignment", clip) == pytest.approx(np.exp(-(off**2) / (2 * TOLERANCE_S**2)), abs=0.06)


def test_why_beat_alignment_is_missing() -> None:
    clip = Clip(key="a", valid=np.ones(50, bool), predicted_pose=nodding(1, 2), audio=np.zeros(32000))
    with pytest.raises(Unavailable, match="no onsets"):
        of("beat_alignment", clip)
    with pytest.raises(Unavailable, match="needs audio"):
        of("beat_alignment", replace(clip, audio=None))
    with pytest.raises(Unavailable, match="needs predicted_pose"):
        of("beat_alignment", replace(clip, predicted_pose=None))
    with pytest.raises(Unavailable, match="no three neighbouring"):
        of("pose_jitter", pair(np.zeros((2, 6)), np.zeros((2, 6))))
    with pytest.raises(Unavailable, match="no two neighbouring"):
        of("pose_largest_step", pair(np.zeros((1, 6)), np.zeros((1, 6))))
