"""Speech activity: real speech against music and noise, at any level, in noise of a known level; and its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from annotate.speech_activity import (
    SCORES,
    SPEECH_ACTIVITY,
    SpeechActivitySettings,
    speech_scores,
    weights_provenance,
)
from talkinghead.column import decode_column
from talkinghead.derived import derived_members
from talkinghead.media.audio import read_whole_audio
from talkinghead.models.speech.activity import at_one_level
from talkinghead.models.speech.activity_weights import ACTIVITY_SHA256
from talkinghead.provenance import hash_file
from tests.support.feature_samples import ClipInMemory
from tests.support.speech_weights import formula_weights, published_weights

RATE = 16_000


def measured(audio: np.ndarray, weights: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The column as it comes back from a shard, and scores."""
    clip: Any = ClipInMemory(audio.astype(np.float32))
    settings = SpeechActivitySettings(weights=weights)
    derived = SPEECH_ACTIVITY.open(settings, {}, "cpu")(clip)
    members = derived_members(SPEECH_ACTIVITY, derived, clip.num_frames, None, {})
    [form] = SPEECH_ACTIVITY.arrays
    assert derived.scores.keys() == set(SCORES)
    return decode_column(form, members["speech_activity.npy"]), dict(derived.scores)


@pytest.fixture(scope="session")
def published() -> str:
    return str(published_weights())


@pytest.fixture(scope="session")
def speech(media: Path) -> np.ndarray:
    """Eight seconds of a woman who reads."""
    return read_whole_audio(media / "audio" / "speechbrain_LJ050-0131.wav")[: 8 * RATE // 640 * 640]


# --- what is speech ---------------------------------------------------------------------------------------------------


def music(seconds: float, seed: int) -> np.ndarray:
    """Chords of plucked strings with a beat under them."""
    rng = np.random.default_rng(seed)
    sound = np.zeros(int(seconds * RATE))
    for start in range(0, len(sound), RATE // 3):
        time = np.arange(min(RATE, len(sound) - start)) / RATE
        for note in rng.choice([220.0, 261.6, 329.6, 392.0, 440.0, 523.3], 3, replace=False):
            harmonics = sum(np.sin(2 * np.pi * note * k * time) * np.exp(-(2 + k) * time) / k for k in range(1, 9))
            sound[start : start + len(time)] += harmonics
        sound[start : start + len(time)] += rng.normal(0, 1, len(time)) * np.exp(-40 * time)
    return 0.3 * sound / np.abs(sound).max()


def modulated_noise(seconds: float, seed: int) -> np.ndarray:
    """Noise that swells four times a second, as syllables do."""
    time = np.arange(int(seconds * RATE)) / RATE
    return 0.2 * np.random.default_rng(seed).normal(size=len(time)) * (1 + np.sin(2 * np.pi * 4 * time)) / 2


def test_music_and_noise_are_no_speech(published: str) -> None:
    seconds = np.arange(4 * RATE) / RATE
    hum = 0.3 * np.sign(np.sin(2 * np.pi * 50 * seconds))
    white = 0.1 * np.random.default_rng(0).normal(size=len(seconds))
    for sound in (music(4, 0), music(4, 1), modulated_noise(4, 0), hum, white):
        probability, scores = measured(sound, published)
        assert scores["speech_share"] <= 0.05 and probability.max() < 0.9
        assert scores["other_sound_share"] > 0.8 and scores["speech_snr_db"] is None


def test_silence_is_no_speech_and_no_other_sound(published: str) -> None:
    steps = np.random.default_rng(0).integers(-1, 2, 4 * RATE) / 32768  # the last bit, which is brought to the level
    for sound, heard in ((np.zeros(4 * RATE), 0.0), (steps, 1.0)):
        probability, scores = measured(sound, published)
        assert scores == {"speech_share": 0.0, "speech_snr_db": None, "other_sound_share": heard}
        assert np.isfinite(probability).all()


def test_speech_is_speech_at_any_level(published: str, speech: np.ndarray) -> None:
    whole, scores = measured(speech, published)
    assert 0.75 < scores["speech_share"] < 1 and scores["speech_snr_db"] > 30 and scores["other_sound_share"] < 0.05
    clicked = speech / 100
    clicked[[1000, 50_000]] = 0.9
    for other in (speech / 100, clicked, np.clip(8 * speech, -1, 1)):
        quiet, scores_of = measured(np.round(other * 32768) / 32768, published)
        assert abs(scores_of["speech_share"] - scores["speech_share"]) < 0.06
        assert np.abs(quiet - whole).mean() < 0.1


def test_speech_is_found_where_it_was_put(published: str, speech: np.ndarray) -> None:
    sound = np.concatenate([music(3, 2), speech[: 3 * RATE], np.zeros(2 * RATE)])
    probability, _ = measured(sound, published)
    speaks = probability >= 0.5
    assert speaks[:70].mean() < 0.05 and speaks[80:145].mean() > 0.7 and speaks[-40:].mean() < 0.05


@pytest.mark.parametrize("snr_db", [0, 10, 20])
def test_noise_of_a_known_level_is_measured(published: str, speech: np.ndarray, snr_db: int) -> None:
    noise = np.random.default_rng(1).normal(size=len(speech)) * np.sqrt(np.mean(speech**2)) * 10 ** (-snr_db / 20)
    _, scores = measured(speech + noise, published)
    assert scores["speech_share"] > 0.7
    # Speech is 0.6 dB louder in the frames that speak than over the whole clip.
    assert scores["speech_snr_db"] == pytest.approx(snr_db + 0.6, abs=1)


def test_music_under_speech_counts_as_noise(published: str, speech: np.ndarray) -> None:
    under = music(len(speech) / RATE, 3)[: len(speech)]
    under *= np.sqrt(np.mean(speech**2) / np.mean(under**2))
    _, alone = measured(speech, published)
    _, scores = measured(speech + under / np.sqrt(10), published)
    assert scores["speech_share"] > 0.6 and scores["speech_snr_db"] < 20 < alone["speech_snr_db"] - 10


# --- scores by hand ---------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    probability = np.array([0.9] * 10 + [0.4] * 3 + [0.1] * 7)
    power = np.array([1.1] * 10 + [50.0] * 3 + [0.1] * 7)
    scores = speech_scores(probability, power, 0.5)
    assert scores["speech_share"] == 0.5 and scores["speech_snr_db"] == pytest.approx(10)
    assert scores["other_sound_share"] == 0, "frames in between are neither; the rest is 27 dB below the loudest"
    scores = speech_scores(probability, np.minimum(power, 1.1), 0.5)
    assert scores["other_sound_share"] == pytest.approx(7 / 20)
    assert speech_scores(probability, power * (probability > 0.2), 0.5)["speech_snr_db"] == 80, "no noise at all"
    assert speech_scores(probability, np.ones(20), 0.5)["speech_snr_db"] == pytest.approx(-20), "speech in more noise"
    assert speech_scores(probability[:17], power[:17], 0.5)["speech_snr_db"] is None, "three frames inside of a pause"
    fading = np.where(np.arange(20) == 13, 1.0, power)  # the word's end sounds in the pause's first frame
    pauses = speech_scores(np.tile(probability, 3), np.tile(fading, 3), 0.5)
    assert pauses["speech_snr_db"] == pytest.approx(10)
    short = speech_scores(np.tile([0.9, 0.1, 0.1], 10), np.ones(30), 0.5)
    assert short["speech_snr_db"] is None, "pauses that are all ends"
    assert speech_scores(probability, power, 0.95)["speech_share"] == 0


def test_one_level() -> None:
    sound = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    for scale in (1e-4, 0.1, 3.0):
        np.testing.assert_allclose(at_one_level(scale * sound), at_one_level(sound), atol=1e-5)
    assert np.abs(at_one_level(sound)).max() <= 1 and at_one_level(np.zeros(5)).tolist() == [0] * 5


# --- weights and settings ---------------------------------------------------------------------------------------------


def test_any_weights_of_the_network_and_their_hash(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    safetensors.torch.save_file(formula_weights(), file)
    about = weights_provenance(SpeechActivitySettings(weights=str(file)))
    assert about == {"weights": {"kind": "file", "name": "own.safetensors", "sha256": hash_file(file)}}
    probability, _ = measured(np.random.default_rng(0).normal(0, 0.1, 640 * 3), str(file))
    assert probability.shape == (3,) and probability.min() > 0 and probability.max() < 1
    assert measured(np.zeros(640), str(file))[0].shape == (1,)
    with pytest.raises(ValueError, match="there is no file"):
        weights_provenance(SpeechActivitySettings(weights=str(tmp_path / "gone.safetensors")))
    with pytest.raises(ValueError, match="threshold"):
        SpeechActivitySettings(threshold=1.0)


def test_the_published_weights_are_pinned(published: str) -> None:
    del published  # they can be had
    about = weights_provenance(SpeechActivitySettings())
    assert about["weights"]["sha256"] == ACTIVITY_SHA256 and about["weights"]["kind"] == "silero-vad"
