"""`infer animate --still-in-silence`: real speech with a pause; the mouth is shut in it, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infer.__main__ import main
from talkinghead.geometry.face_regions import BROWS, EYES, LIPS, lip_gap
from talkinghead.media.audio import encode_wav, read_whole_audio
from talkinghead.motion.at_rest import mean_expression
from talkinghead.motion.compose import SEAM_S
from tests.support.landmark_files import LandmarkFile, read_landmark_file
from tests.support.speech_weights import published_weights

FPS = 25
PAUSE_S = 2.0


@pytest.fixture(scope="module")
def speech(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a reader, two of silence, and two of the same reader."""
    spoken = read_whole_audio(media / "audio" / "speechbrain_LJ050-0131.wav")
    sound = np.concatenate((spoken[: 3 * 16_000], np.zeros(round(PAUSE_S * 16_000), np.float32), spoken[: 2 * 16_000]))
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    path.write_bytes(encode_wav(sound))
    return path


def animated(speech: Path, media: Path, weights: Path, folder: Path, *options: str) -> LandmarkFile:
    folder.mkdir()
    reference = media / "image" / "AniPortrait_lyl.png"
    given = ["--reference", reference, "--audio", speech, "--weights", weights, "--width", 128, "-o", folder / "o.mp4"]
    assert main(["animate", "--renderer", "landmarks", *map(str, given), *options]) == 0
    return read_landmark_file(folder / "o.npz")


def test_the_mouth_is_shut_in_the_pause(speech: Path, media: Path, tiny_weights: Path, tmp_path: Path) -> None:
    published_weights()  # skipped where they cannot be had
    plain = animated(speech, media, tiny_weights, tmp_path / "plain")
    still = animated(speech, media, tiny_weights, tmp_path / "still", "--still-in-silence")
    assert len(plain) == len(still) == 175
    begin, end = 3 * FPS, round((3 + PAUSE_S) * FPS)

    # In the middle of the pause the lips lie at rest, which these weights would not let them.
    middle = slice(begin + 12, end - 12)
    rest = mean_expression().lip_gap_at_rest
    assert np.abs(lip_gap(plain.mesh[middle]) - rest).max() > 0.02
    assert lip_gap(still.mesh[middle]).max() < rest + 0.005, "cm"
    assert np.ptp(still.mesh[middle][:, list(LIPS)], axis=0).max() == 0

    # Frames with speech keep every bit; so do eyes, brows and the head in all.
    changed = (still.mesh != plain.mesh).any(axis=(1, 2))
    assert begin <= np.flatnonzero(changed).min() and np.flatnonzero(changed).max() < end and changed[middle].all()
    np.testing.assert_array_equal(still.mesh[:, [*EYES, *BROWS]], plain.mesh[:, [*EYES, *BROWS]])
    np.testing.assert_array_equal(still.pose, plain.pose)

    # No jump: a step from frame to frame is the motion's own, and the share of the way to the shut mouth that a
    # smoothstep over the seam goes in a frame at most.
    window = 2 * round(SEAM_S * FPS / 2) + 1
    way = np.abs(still.mesh - plain.mesh).max()
    most = np.abs(np.diff(plain.mesh, axis=0)).max() + 1.5 / window * way
    assert np.abs(np.diff(still.mesh, axis=0)).max() <= most + 1e-5


def test_a_silent_driver_has_no_pauses(media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--reference", media / "image" / "AniPortrait_lyl.png", "--limit-seconds", "0.2", "-o", tmp_path / "o.mp4"]
    arguments = ["animate", "--driver", "still", "--renderer", "landmarks", "--still-in-silence", *map(str, given)]
    assert main(arguments) == 2
    assert "--still-in-silence needs a sound" in capfd.readouterr().err and not list(tmp_path.iterdir())
