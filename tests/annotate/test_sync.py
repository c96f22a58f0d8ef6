"""Lips and sound: delays that were put in, other people's speech, stills, gaps; and real clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate.sync import LAGS, SCORES, SYNC, SyncSettings, lag_curve, lip_signals, lips_and_sound, sound_signals
from talkinghead.column import decode_column
from talkinghead.derived import Derived, derived_members
from talkinghead.features.band_levels import BAND_LEVELS
from talkinghead.features.feature import read_feature
from talkinghead.geometry.canonical import mean_face
from tests.support.feature_samples import ClipInMemory
from tests.support.real_clips import OTHER, WOMAN, real_clip


def syllables(frames: int, seed: int) -> np.ndarray:
    """How far a speaking mouth is open, 0 … 1, `[F]`: smooth, three to five openings a second."""
    noise = np.random.default_rng(seed).normal(size=frames + 6)
    opening = np.convolve(noise, [0.25, 0.5, 0.25], "same")[3:-3]
    return np.clip(0.5 + 0.4 * opening, 0, 1)


def speaking(opening: np.ndarray) -> np.ndarray:
    """Meshes `[F, 468, 3]` of the mean face whose lower lip and chin go down by so many cm."""
    mesh = np.repeat(mean_face().vertices[None].astype(np.float64), len(opening), axis=0)
    for vertex, share in ((14, 1.0), (17, 0.9), (152, 0.7)):
        mesh[:, vertex, 1] -= share * opening
    return mesh


def sound(opening: np.ndarray, seed: int) -> np.ndarray:
    """Noise as loud as the mouth is open, `[F · 640]`."""
    loudness = np.interp(np.arange(len(opening) * 640) / 640 - 0.5, np.arange(len(opening)), opening)
    return (0.1 * loudness**2 * np.random.default_rng(seed).normal(size=len(loudness))).astype(np.float32)


def measured(mesh: np.ndarray, audio: np.ndarray, valid: np.ndarray | None = None) -> Derived:
    """What the column makes of a clip, through a shard's form."""
    valid = np.ones(len(mesh), bool) if valid is None else valid
    clip: Any = ClipInMemory(audio, {"mesh": mesh, "valid": valid})
    clip.column = clip.annotation
    derived = SYNC.open(SyncSettings(), {}, "cpu")(clip)
    members = derived_members(SYNC, derived, len(mesh), valid, {})
    [form] = SYNC.arrays
    assert decode_column(form, members["sync_curve.npy"]).shape == (1, 31) and derived.scores.keys() == set(SCORES)
    return derived


def late(audio: np.ndarray, frames: int) -> np.ndarray:
    """Sound that comes so many frames later."""
    return np.roll(audio, 640 * frames)


@pytest.mark.parametrize("delay", [-7, -3, 0, 1, 6])
def test_a_delay_that_was_put_in_is_found(delay: int) -> None:
    opening = syllables(150, 0)
    derived = measured(speaking(opening), late(sound(opening, 1), delay))
    scores = derived.scores
    assert scores["sync_lag"] == delay, "positive: the sound is late"
    assert scores["sync_halves_apart"] == 0
    assert (scores["sync_correlation"] or 0) > 0.6 and (scores["sync_confidence"] or 0) > 0.5
    assert LAGS[int(np.argmax(derived.arrays["sync_curve"]))] == delay


def test_the_head_and_the_level_of_the_sound_do_not_count() -> None:
    opening = syllables(150, 2)
    mesh, audio = speaking(opening), sound(opening, 3)
    one, two = measured(mesh, audio), measured(mesh, audio / 10)
    np.testing.assert_allclose(one.arrays["sync_curve"], two.arrays["sync_curve"], atol=1e-3)
    # A posture that changes slowly, larger than the speech.
    slow = 2 * np.sin(np.arange(150) / 60)
    drifting = measured(speaking(opening + slow - slow.min()), audio)
    assert drifting.scores["sync_lag"] == 0 and (drifting.scores["sync_correlation"] or 0) > 0.5
    seen = np.ones(150, bool)
    assert np.abs(lip_signals(speaking(slow - slow.min()), seen)[7:-7]).max() < 0.02, "2 cm before"
    fading = np.stack([np.linspace(-60, -20, 150)] * 2, axis=1)
    assert np.abs(sound_signals(fading)[7:-7, 2:]).max() < 1e-9, "40 dB before"


def test_other_speech_has_no_correlation_on_frames_that_did_not_pick_the_lag() -> None:
    """The best lag of many is always positive; the correlation at the other half's best lag is not."""
    scores = [
        measured(speaking(syllables(150, seed)), sound(syllables(150, 100 + seed), 1)).scores for seed in range(40)
    ]
    correlation = np.array([found["sync_correlation"] for found in scores], float)
    confidence = np.array([found["sync_confidence"] for found in scores], float)
    assert abs(correlation.mean()) < 0.04 and np.quantile(np.abs(correlation), 0.9) < 0.35
    assert confidence.min() > 0 and confidence.mean() > 0.1, "what picking does"
    assert np.mean([(found["sync_halves_apart"] or 0) <= 1 for found in scores]) < 0.5


def test_frames_without_a_face_are_left_out() -> None:
    opening = syllables(200, 4)
    mesh, valid = speaking(opening), np.ones(200, bool)
    valid[60:90] = valid[150] = False
    mesh[~valid] = np.nan
    scores = measured(mesh, late(sound(opening, 5), 2), valid).scores
    assert scores["sync_lag"] == 2 and (scores["sync_correlation"] or 0) > 0.6


def test_nothing_is_said_where_nothing_moves_or_sounds_or_is_seen() -> None:
    opening = syllables(100, 6)
    mesh, audio = speaking(opening), sound(opening, 7)
    still, gone = np.repeat(mesh[:1], 100, axis=0), np.full_like(mesh, np.nan)
    assert measured(still, audio).scores == dict.fromkeys(SCORES)
    assert measured(mesh, np.zeros_like(audio)).scores == dict.fromkeys(SCORES)
    assert measured(gone, audio, np.zeros(100, bool)).scores == dict.fromkeys(SCORES)
    for frames in (1, 2, 20):
        assert measured(mesh[:frames], audio[: frames * 640]).scores == dict.fromkeys(SCORES)
    # Long enough for a lag, too short for two.
    short = measured(mesh[:45], audio[: 45 * 640]).scores
    assert short["sync_lag"] == 0 and short["sync_correlation"] is None and short["sync_halves_apart"] is None


def test_a_curve_by_hand() -> None:
    """Sound that is the lips three frames later correlates fully at lag 3."""
    lips = np.random.default_rng(0).normal(size=(100, 1))
    curve = lag_curve(lips, np.roll(lips, 3, axis=0), np.arange(100))
    assert curve[LAGS.tolist().index(3)] == pytest.approx(1.0) and np.sort(curve)[-2] < 0.5
    assert np.isnan(lag_curve(lips[:19], lips[:19], np.arange(19))).all()


@pytest.mark.parametrize(("name", "lags"), [(WOMAN, (2, 3)), (OTHER, (2, 3))])
def test_real_clips_at_their_own_delays(shared: Path, name: str, lags: tuple[int, ...]) -> None:
    """Both are published with their sound late, by a frame count that a network for the purpose confirmed."""
    clip = real_clip(shared, name)
    mesh, audio = clip.arrays["mesh"], clip.audio[: len(clip.arrays["mesh"]) * 640]
    scores = measured(mesh, audio, clip.arrays["valid"]).scores
    assert scores["sync_lag"] in lags and (scores["sync_halves_apart"] or 0) <= 1
    assert (scores["sync_correlation"] or 0) > 0.15 and (scores["sync_confidence"] or 0) > 0.25
    moved = measured(mesh, late(audio, -4), clip.arrays["valid"]).scores
    assert moved["sync_lag"] == (scores["sync_lag"] or 0) - 4
    levels = read_feature(ClipInMemory(audio), BAND_LEVELS)
    assert lips_and_sound(mesh, clip.arrays["valid"], levels).scores == scores
