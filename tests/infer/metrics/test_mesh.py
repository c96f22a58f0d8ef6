"""Metrics of meshes, mouths and eyes: values computed by hand, invariances, and reasons for missing values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.metrics import METRICS, Clip, Unavailable, measure
from infer.metrics.mesh import frame_level
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LIPS

ERRORS = ("mesh_l1", "mesh_error", "lip_error", "lip_vertex_error", "velocity_error", "mouth_opening_error")
FACE = mean_face().vertices


def of(name: str, clip: Clip) -> float:
    return METRICS[name].of(clip)


def speaking(opening: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """The mean face with its lips `opening` cm apart in each frame, `[F, 468, 3]` cm."""
    mesh = np.repeat(FACE[None], len(opening), axis=0)
    mesh[:, 14] = mesh[:, 13] - np.stack([np.zeros_like(opening), opening, np.zeros_like(opening)], axis=1)
    if valid is not None:
        mesh[~valid] = np.nan
    return mesh


def pair(predicted: np.ndarray, true: np.ndarray, **others: object) -> Clip:
    valid = np.isfinite(true).all(axis=(1, 2))
    return Clip(key="a", valid=valid, predicted_mesh=predicted, true_mesh=true, **others)  # type: ignore[arg-type]


def babble(frames: int, seed: int = 0) -> np.ndarray:
    """A mouth opening `[F]` in cm that varies at random, so that it correlates with itself at one lag only."""
    noise = np.random.default_rng(seed).normal(size=frames + 8)
    return 1 + 0.4 * np.convolve(noise, np.ones(4) / 4, mode="same")[4:-4]


def test_errors_by_hand() -> None:
    """Frame 0: every vertex 0.3 and 0.4 cm off (5 mm). Frame 1: right but for one lip vertex, 1.2 cm off."""
    true = np.repeat(FACE[None], 2, axis=0)
    predicted = true.copy()
    predicted[0] += [0.3, 0.4, 0]
    predicted[1, LIPS[7], 2] += 1.2
    clip = pair(predicted, true)
    assert of("mesh_l1", clip) == pytest.approx((7 / 3 + 12 / 3 / 468) / 2)
    assert of("mesh_error", clip) == pytest.approx((5 + 12 / 468) / 2)
    assert of("lip_error", clip) == pytest.approx((5 + 12 / 80) / 2)
    assert of("lip_vertex_error", clip) == pytest.approx((5 + 12) / 2)
    # From frame 0 to 1 all vertices move back by 5 mm, one of them by (-3, -4, +12) mm: 13 mm; in 1/25 s.
    assert of("velocity_error", clip) == pytest.approx(25 * (467 * 5 + 13) / 468)


@given(st.integers(3, 40), st.integers(0, 99))
def test_a_perfect_prediction(frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    valid = rng.random(frames) < 0.8
    valid[:3] = True
    true = speaking(babble(frames, seed), valid)
    for name in ERRORS:
        assert of(name, pair(np.where(np.isnan(true), 7.0, true), true)) == 0, name


@given(st.integers(0, 99))
def test_errors_ignore_frames_without_a_face_and_the_common_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = speaking(babble(12)), speaking(babble(12, 1)) + rng.normal(0, 0.1, (12, 468, 3))
    masked = true.copy()
    masked[[3, 4, 9]] = np.nan
    changed = predicted.copy()
    changed[[3, 4, 9]] = rng.normal(size=(3, 468, 3))
    for name in ERRORS:
        value = of(name, pair(predicted, masked))
        assert value == of(name, pair(changed, masked)) > 0
        assert of(name, pair(predicted + 2, masked + 2)) == pytest.approx(value)


def test_a_neutral_mesh_has_no_mouth_correlation() -> None:
    true = speaking(babble(60))
    neutral = np.repeat(true[:1], 60, axis=0)
    for name in ("mouth_opening_correlation", "mouth_opening_lag", "mouth_opening_lag_ms"):
        with pytest.raises(Unavailable, match="the predicted mouth does not move"):
            of(name, pair(neutral, true))
        with pytest.raises(Unavailable, match="the true mouth does not move"):
            of(name, pair(true, neutral))


@pytest.mark.parametrize(("scale", "offset", "expected"), [(1, 0, 1), (0.3, 0.2, 1), (-0.5, 2, -1)])
def test_mouth_correlation_does_not_see_scale(scale: float, offset: float, expected: float) -> None:
    opening = babble(80)
    clip = pair(speaking(scale * opening + offset), speaking(opening))
    assert of("mouth_opening_correlation", clip) == pytest.approx(expected)
    if expected == 1:
        assert of("mouth_opening_lag", clip) == 0


def test_mouth_opening_error_by_hand() -> None:
    clip = pair(speaking(np.array([1.0, 0.5])), speaking(np.array([0.8, 1.0])))
    assert of("mouth_opening_error", clip) == pytest.approx((2 + 5) / 2)


@pytest.mark.parametrize("lag", [-15, -4, 0, 1, 7, 15])
@pytest.mark.parametrize("holes", [False, True])
def test_lag_finds_the_shift(lag: int, holes: bool) -> None:
    opening = babble(120)
    valid = np.ones(80, bool)
    valid[30:34] = not holes
    true = speaking(opening[20:100], valid)
    late = speaking(opening[20 - lag : 100 - lag])
    clip = pair(late, true)
    assert of("mouth_opening_lag", clip) == lag
    assert of("mouth_opening_lag_ms", clip) == lag * 40
    assert of("mouth_opening_lag_ms", replace(clip, fps=50.0)) == pytest.approx(lag * 20)


def test_a_short_clip_has_no_lag() -> None:
    opening = babble(20)
    # Also where it is shorter than the largest lag, 15 frames.
    for frames in (20, 16, 15, 12):
        with pytest.raises(Unavailable, match="too short"):
            of("mouth_opening_lag", pair(speaking(opening[:frames]), speaking(opening[:frames])))
    with pytest.raises(Unavailable, match="fewer than 10 frames"):
        of("mouth_opening_correlation", pair(speaking(opening[:9]), speaking(opening[:9])))


def test_jitter_by_hand() -> None:
    """All vertices at 0, 1, 4, 9 mm: an acceleration of 2 mm per frame squared; even motion has none."""
    steps = np.zeros((4, 468, 3))
    steps[..., 1] = np.array([0, 0.1, 0.4, 0.9])[:, None]
    clip = Clip(key="a", valid=np.ones(4, bool), predicted_mesh=FACE + steps)
    assert of("mesh_jitter", clip) == pytest.approx(2 * 25**2)
    even = np.arange(4)[:, None, None] * np.ones((4, 468, 3))
    assert of("mesh_jitter", replace(clip, predicted_mesh=FACE + even)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(Unavailable, match="no three neighbouring"):
        of("mesh_jitter", replace(clip, valid=np.array([True, True, False, True])))


def test_level_of_the_audio_of_a_frame() -> None:
    audio = np.concatenate([np.full(640, 0.1), np.zeros(640), np.full(640, -1.0)])
    np.testing.assert_allclose(frame_level(audio, 4, 25), [-20, -60, 0, -60], atol=1e-9)


def test_mouth_moves_with_the_speech() -> None:
    """Half a second of noise, half a second of silence, …: the mouth moves with it, or against it."""
    rng = np.random.default_rng(0)
    speech = np.arange(200) // 13 % 2 == 0
    audio = np.repeat(speech, 640) * rng.normal(0, 0.1, 200 * 640)
    moving = 1 + 0.5 * np.sin(np.arange(200) * 1.7)
    clip = Clip(key="a", valid=np.ones(200, bool), predicted_mesh=speaking(np.where(speech, moving, 1)), audio=audio)
    against = replace(clip, predicted_mesh=speaking(np.where(speech, 1, moving)))
    assert of("mouth_speech_correlation", clip) > 0.8
    assert of("mouth_speech_correlation", against) < -0.8
    with pytest.raises(Unavailable, match="loudness does not vary"):
        of("mouth_speech_correlation", replace(clip, audio=np.zeros(200 * 640)))
    with pytest.raises(Unavailable, match="needs audio"):
        of("mouth_speech_correlation", replace(clip, audio=None))


def blinking(frames: int, blinks: list[tuple[int, int]]) -> Clip:
    """A face with open eyes that closes them at each of `blinks`: (first frame, number of frames)."""
    mesh = np.repeat(FACE[None], frames, axis=0)
    for first, length in blinks:
        for upper, lower in ((160, 144), (158, 153), (387, 373), (385, 380)):
            mesh[first : first + length, upper] = mesh[first : first + length, lower]
    return Clip(key="a", valid=np.ones(frames, bool), predicted_mesh=mesh)


def test_blinks_are_counted() -> None:
    assert of("blink_rate", blinking(250, [])) == 0
    assert of("blink_rate", blinking(250, [(20, 3), (60, 5), (249, 1)])) == pytest.approx(18)
    assert of("blink_rate", blinking(250, [(20, 3), (60, 12)])) == pytest.approx(12)
    assert of("blink_rate", blinking(250, [(20, 3), (60, 40)])) == pytest.approx(6), "eyes closed for 1.6 s"
    with pytest.raises(Unavailable, match="shorter than 2 s"):
        of("blink_rate", blinking(49, [(20, 3)]))


def test_what_a_mesh_clip_has() -> None:
    """With meshes and audio every metric has a value but those of poses and of images."""
    loudness = np.repeat(np.linspace(0.01, 1, 100), 640)
    audio = loudness * np.random.default_rng(0).normal(size=64000)
    clip = pair(speaking(babble(100)), speaking(babble(100)), audio=audio)
    lacking = {result.name for result in measure([clip]) if result.value is None}
    there = {"predicted_mesh", "true_mesh", "audio"}
    assert lacking == {name for name, metric in METRICS.items() if not there >= set(metric.needs)}
