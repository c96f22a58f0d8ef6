"""Loudness by values that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from talkinghead.features.feature import read_feature
from talkinghead.features.loudness import FLOOR_DB, LOUDNESS
from tests.support.feature_samples import ClipInMemory


def loudness(audio: np.ndarray) -> np.ndarray:
    return read_feature(ClipInMemory(audio.astype(np.float32)), LOUDNESS)


@pytest.mark.parametrize("frames", [1, 2, 3, 20])
def test_a_steady_sound_is_equally_loud_to_both_ends(frames: int) -> None:
    square = np.where(np.arange(frames * 640) % 2, 0.5, -0.5)
    np.testing.assert_allclose(loudness(square), 20 * np.log10(0.5), atol=1e-5)
    # 400 Hz: 16 whole periods in a frame; a sine is 3 dB below its peak.
    sine = np.sin(2 * np.pi * 400 / 16_000 * np.arange(frames * 640))
    np.testing.assert_allclose(loudness(sine), -10 * np.log10(2), atol=0.01)


def test_silence_has_the_floor_and_the_quietest_sound_is_above_it() -> None:
    assert loudness(np.zeros(640 * 4)).tolist() == [FLOOR_DB] * 4
    step = np.where(np.arange(640 * 4) % 2, 1, -1) / 32768
    np.testing.assert_allclose(loudness(step), -90.309, atol=0.001)


def test_a_frame_sounds_in_its_neighbours_and_no_further() -> None:
    audio = np.zeros((7, 640))
    audio[3] = 1.0
    found = loudness(audio.ravel())
    # Shares of a Hann window of three frames: its middle third holds 1/3 + √3/(2π), the others the rest in equal parts.
    middle = 1 / 3 + np.sqrt(3) / (2 * np.pi)
    side = (1 - middle) / 2
    expected = [FLOOR_DB, FLOOR_DB, 10 * np.log10(side), 10 * np.log10(middle), 10 * np.log10(side), FLOOR_DB, FLOOR_DB]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.dtype == np.float32
    # At the end of the clip, the shares are of what there is.
    ends = loudness(audio[3:5].ravel())
    np.testing.assert_allclose(
        ends, [10 * np.log10(middle / (middle + side)), 10 * np.log10(side / (middle + side))], atol=1e-4
    )
