"""Frames of speech: beginning and end with their hangover, at any frame rate, and real speech against silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from talkinghead.media.audio import read_whole_audio
from talkinghead.models.speech.activity import PIECE
from talkinghead.models.speech.pauses import HANGOVER_S, frames_of_speech, speech_active
from tests.support.speech_weights import formula_weights, published_weights

PIECES_A_SECOND = 16_000 / PIECE


def test_speech_lasts_until_it_surely_ended() -> None:
    """It begins at 0.5, goes on over 0.4, and ends below 0.35; nothing below 0.5 begins it."""
    probability = np.zeros(100)
    probability[20], probability[21:40], probability[60:70] = 0.5, 0.4, 0.49
    active = frames_of_speech(probability, 25, 80)
    begin, end = 20 / PIECES_A_SECOND - HANGOVER_S, 40 / PIECES_A_SECOND + HANGOVER_S
    assert np.flatnonzero(active).tolist() == list(range(int(begin * 25), int(np.ceil(end * 25))))
    # Twice the rate: twice as many frames of the same time.
    np.testing.assert_array_equal(frames_of_speech(probability, 50, 160)[::2][np.flatnonzero(active)[1:-1]], True)


def test_what_is_beyond_the_sound_is_silent() -> None:
    assert frames_of_speech(np.ones(10), 25, 40).sum() == np.ceil((10 / PIECES_A_SECOND + HANGOVER_S) * 25)
    assert not frames_of_speech(np.zeros(0), 25, 5).any()


def test_missing_weights_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.safetensors"):
        speech_active(np.zeros(16_000, np.float32), 25, 25, weights=tmp_path / "gone.safetensors")


def test_a_sound_of_any_length_has_its_frames(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(formula_weights(), file)
    for samples in (0, 1, 5000):
        assert speech_active(np.zeros(samples, np.float32), 25, 7, weights=file).shape == (7,)


def test_published_weights_find_the_pause(media: Path) -> None:
    """Real speech, two seconds of silence, and the speech again."""
    speech = read_whole_audio(media / "audio" / "speechbrain_LJ050-0131.wav")[: 3 * 16_000]
    seconds = len(speech) / 16_000
    sound = np.concatenate((speech, np.zeros(2 * 16_000, np.float32), speech))
    active = speech_active(sound, 25, round(len(sound) / 640), weights=published_weights())
    pause = slice(round((seconds + 0.5) * 25), round((seconds + 1.5) * 25))
    assert not active[pause].any()
    assert active[: pause.start].mean() > 0.6 and active[pause.stop :].mean() > 0.5
