"""Speech on the command line: weights found first and loaded last, settings that reach the models, memory that stays.

A tone stands for speech; the weights are tiny.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.drivers.speech import SpeechDriving, choose_identity
from infer.request import SpeechRequest
from infer.weights.speech_weights import load_audio2pose
from talkinghead.media.audio import encode_wav
from talkinghead.motion.motion import Motion
from talkinghead.pipelines.audio2lmk.driver import Audio2LmkDriver
from talkinghead.pipelines.registry import load_driver
from tests.support.drawn_portrait import drawn_portrait

PORTRAIT = drawn_portrait()
UNUSED: Any = None


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of a tone that swells."""
    samples = np.linspace(0, 0.6, 24_000) * np.sin(np.arange(24_000) / 9)
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    path.write_bytes(encode_wav(samples.astype(np.float32)))
    return path


def driving(speech: Path, weights: Path | None, **options: Any) -> SpeechDriving:
    request = SpeechRequest(reference=Path("r.png"), output=Path("o.mp4"), audio=speech, **options)
    request.check()
    return SpeechDriving(request, weights, renders=False)


def moved(made: SpeechDriving, fps: float = 25.0, seconds: float | None = None) -> Motion:
    made.find(None)
    made.read(PORTRAIT, UNUSED, lambda *_: None, seconds)  # pyright: ignore[reportArgumentType]
    return made.move(PORTRAIT, UNUSED, fps=fps, device="cpu").whole()


def test_the_motion_is_that_of_the_library(speech: Path, tiny_weights: Path) -> None:
    """What `load_driver` makes of the same samples, to the bit; and again the same."""
    made = driving(speech, tiny_weights, identity="3")
    found = moved(made)
    from talkinghead.media.audio import read_whole_audio
    from talkinghead.pipelines.audio2lmk.driver import SpeechMotion

    wanted = load_driver(tiny_weights).move(PORTRAIT, read_whole_audio(speech), SpeechMotion(identity=3)).whole()
    np.testing.assert_array_equal(found.meshes(), wanted.meshes())
    np.testing.assert_array_equal(found.pose_matrix, wanted.pose_matrix)
    assert len(found) == 38 and made.facts == {"identity": 3} and set(made.provenance()) == {"audio2mesh", "audio2pose"}
    assert made.describe()["audio"]["seconds"] == 1.5 and made.sound == speech
    np.testing.assert_array_equal(moved(driving(speech, tiny_weights, identity="3")).meshes(), found.meshes())
    assert len(moved(driving(speech, tiny_weights), seconds=0.4)) == 10


def test_before_weights_are_found_the_name_tells(speech: Path, tiny_weights: Path) -> None:
    made = driving(speech, tiny_weights)
    assert made.gives == Audio2LmkDriver.gives
    made.find(None)
    assert made.gives.fps == 25 and not made.gives.compat


def test_the_head_stands_still_or_follows_a_file(speech: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """It then needs no pose weights."""
    shutil.copytree(tiny_weights / "audio2mesh", tmp_path / "weights" / "audio2mesh")
    still = moved(driving(speech, tmp_path / "weights", pose="still"))
    assert np.abs(still.pose_about(PORTRAIT.pose_matrix)).max() < 1e-9 and np.ptp(still.meshes(), axis=0).max() > 0.01
    nod = np.zeros((80, 6))
    nod[:, 0] = 8 * np.sin(np.arange(80) / 6)
    np.save(tmp_path / "t.npy", nod)
    made = driving(
        speech, tmp_path / "weights", pose=f"template:{tmp_path / 't.npy'}", template_fps=25.0, pose_gain=0.5
    )
    found = moved(made)
    np.testing.assert_allclose(found.pose_about(PORTRAIT.pose_matrix)[:, 0], nod[:38, 0] / 2, atol=1e-6)
    np.testing.assert_array_equal(found.meshes(), still.meshes())
    assert len(made.describe()["pose"]["sha256"]) == 64 and made.files[1] == tmp_path / "t.npy"
    with pytest.raises(ValueError, match="audio2pose"):
        driving(speech, tmp_path / "weights").find(None)


def test_the_samples_leave_memory_before_the_models_come(speech: Path, tiny_weights: Path) -> None:
    """What was read lies in a file: the same bits, and no array of it is held by the driving."""
    made = driving(speech, tiny_weights)
    made.find(None)
    made.read(PORTRAIT, UNUSED, UNUSED, None)
    from talkinghead.media.audio import read_whole_audio

    assert made.recording is not None
    np.testing.assert_array_equal(made.recording.samples(), read_whole_audio(speech))
    held = [*vars(made).values(), *vars(made.recording).values()]
    assert not any(isinstance(value, np.ndarray) and value.size > 1000 for value in held)


def test_what_is_missing_is_named_without_reading_the_speech(tmp_path: Path, tiny_weights: Path) -> None:
    gone = tmp_path / "gone.wav"
    for weights, options, said in (
        (None, {}, "give --audio2mesh and --audio2pose"),
        (tmp_path, {}, "no audio2mesh weights"),
        (tiny_weights, {"pose": f"template:{tmp_path / 'gone.npy'}"}, r"gone\.npy is not there"),
        (tiny_weights, {"adapter": (tmp_path / "gone",)}, "gone"),
    ):
        with pytest.raises(ValueError, match=said):
            driving(gone, weights, **options).find(None)
    made = driving(gone, tiny_weights)
    made.find(None)
    with pytest.raises(ValueError, match=r"gone\.wav"):
        made.read(PORTRAIT, UNUSED, UNUSED, None)


def test_identities(tiny_weights: Path, speech: Path) -> None:
    """Drawn by the seed among all eight, or named by number."""
    request = SpeechRequest(reference=Path("r"), output=Path("o.mp4"), audio=speech)
    place = request.find_audio2pose(tiny_weights)
    assert place is not None
    weights = load_audio2pose(place, "cpu")
    drawn = [choose_identity(None, seed, weights) for seed in range(60)]
    assert set(drawn) == set(range(8)) and drawn == [choose_identity(None, seed, weights) for seed in range(60)]
    assert choose_identity("7", 0, weights) == 7
    for asked in ("8", "anna"):
        with pytest.raises(ValueError, match="--identity"):
            choose_identity(asked, 0, weights)
