"""Signatures: the same for the same recording, quiet where there is nothing, and safe to read from a stranger."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ingest.signatures import HOP, MovementSigner, Signature, sound_words
from tests.support.talking_files import SIDE, moving, voice


def movement(images) -> np.ndarray:
    signer = MovementSigner()
    for image in images:
        signer.add(image)
    return signer.words


def drawn(seed: int) -> np.ndarray:
    """A wall of soft spots."""
    spots = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE, 3)), (0, 0), 10)
    return np.clip(127 + 60 * spots / spots.std(), 0, 255).astype(np.uint8)


def differing(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.bitwise_count(one ^ other).mean() / 32)


def test_movement_is_that_of_the_recording_whatever_its_size_and_brightness() -> None:
    images = moving(drawn(0), 1, 30)
    words = movement(images)
    assert len(words) == 29 and words.all()
    brighter = [
        np.clip(cv2.resize(image, (90, 90), interpolation=cv2.INTER_AREA).astype(int) + 12, 0, 255).astype(np.uint8)
        for image in images
    ]
    assert differing(words, movement(brighter)) < 0.15
    assert differing(words, movement(moving(drawn(0), 2, 30))) > 0.4, "another movement of the same face"


def test_what_stands_still_says_nothing() -> None:
    assert movement([drawn(0)] * 5).tolist() == [0, 0, 0, 0]
    assert len(movement([])) == 0


def test_movement_of_a_long_clip_is_bounded() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert len(movement(image + level for level in range(250))) == 128


def test_sound_is_that_of_the_recording_whatever_its_loudness_and_noise() -> None:
    sound = voice(1)[0]
    words = sound_words(sound)
    assert len(words) == (len(sound) - 6 * HOP) // HOP
    noise = np.random.default_rng(0).normal(0, 0.003, len(sound))
    louder = sound_words(0.5 * sound + noise)
    told = (words != 0) & (louder != 0)
    assert told.mean() > 0.8
    assert differing(words[told], louder[told]) < 0.15
    assert differing(words, sound_words(voice(2)[0])) > 0.38


@pytest.mark.parametrize("sound", [np.zeros(20 * HOP), np.zeros(0), np.full(20 * HOP, 1e-4)])
def test_silence_says_nothing(sound: np.ndarray) -> None:
    assert not sound_words(sound).any()


def test_a_signature_becomes_json_and_back() -> None:
    made = Signature(step_frames=5, movement=movement(moving(drawn(0), 1, 9)), sounds={"a": sound_words(voice(1)[0])})
    back = Signature.from_json(made.to_json())
    assert back.step_frames == 5 and np.array_equal(back.movement, made.movement)
    assert back.sounds.keys() == {"a"} and np.array_equal(back.sounds["a"], made.sounds["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"step_frames": 0},
        {"step_frames": True},
        {"movement": "AAA"},
        {"movement": "AA=="},
        {"movement": 3},
        {"movement": "A" * 4096},
        {"sounds": []},
        {"sounds": {"a": "A" * 40000}},
    ],
)
def test_what_is_no_signature_is_refused(change: dict) -> None:
    good = {"step_frames": 5, "movement": "AAAAAA==", "sounds": {}}
    Signature.from_json(good)
    with pytest.raises(ValueError, match="no signature"):
        Signature.from_json(good | change)
    with pytest.raises(ValueError, match="no signature"):
        Signature.from_json(None)
