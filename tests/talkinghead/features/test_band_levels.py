"""Levels of bands by values that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from talkinghead.features.band_levels import BAND_LEVELS
from talkinghead.features.feature import read_feature
from talkinghead.features.loudness import FLOOR_DB
from tests.support.feature_samples import ClipInMemory


def levels(audio: np.ndarray) -> np.ndarray:
    return read_feature(ClipInMemory(audio.astype(np.float32)), BAND_LEVELS)


@pytest.mark.parametrize("frames", [1, 2, 3, 20])
@pytest.mark.parametrize(("hertz", "band"), [(2000, 0), (5000, 1)])
def test_a_steady_tone_is_equally_loud_to_both_ends(frames: int, hertz: int, band: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * hertz / 16_000 * np.arange(frames * 640))
    found = levels(tone)
    np.testing.assert_allclose(found[:, band], 20 * np.log10(0.5) - 10 * np.log10(2), atol=0.02)
    assert (found[1:-1, 1 - band] < -80).all(), "nothing of it in the other band"


def test_bands_have_their_edges_and_silence_the_floor() -> None:
    assert levels(np.zeros(1280)).tolist() == [[FLOOR_DB] * 2] * 2
    for hertz, heard in ((500, (False, False)), (1500, (True, False)), (3500, (False, True)), (7500, (False, False))):
        tone = np.sin(2 * np.pi * hertz / 16_000 * np.arange(10 * 640))
        assert tuple(levels(tone)[5] > -60) == heard


def test_white_noise_has_its_share_in_each_band() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 640 * 500)
    power = 10 ** (levels(noise) / 10)
    np.testing.assert_allclose(power.mean(axis=0), 0.01 * np.array([2000, 4000]) / 8000, rtol=0.03)


def test_a_click_sounds_at_the_frames_around_it() -> None:
    audio = np.zeros(640 * 9)
    audio[640 * 4 + 320] = 1  # in the middle of frame 4: the windows of its neighbours end there
    found = levels(audio)
    assert (found[4] > -50).all() and (found[[0, 1, 2, 6, 7, 8]] == FLOOR_DB).all()
    assert (found[4] > found[[3, 5]].max(axis=0) + 40).all()
