"""`infer animate`: pairs, parts of a face by different drivers, gains by region; equal to its short forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.__main__ import main
from talkinghead.geometry.face_regions import LOWER_FACE
from talkinghead.media.audio import encode_wav, read_whole_audio
from tests.support.landmark_files import read_landmark_file


@pytest.fixture(scope="module")
def speech(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    path.write_bytes(encode_wav(read_whole_audio(media / "audio" / "whisper_jfk.flac")[8000:20800]))
    return path


class Runs:
    def __init__(self, folder: Path, **given: Any) -> None:
        self.folder, self.given = folder, given

    def __call__(self, verb: str, name: str, **options: Any) -> Path:
        out = self.folder / f"{name}.mp4"
        given = {"-o": out, **self.given, **options}
        parts = [str(part) for key, value in given.items() for part in (_option(key), value) if part is not None]
        assert main([verb, *parts]) == 0
        return out


def _option(name: str) -> str:
    return name if name.startswith("-") else "--" + name.replace("_", "-")


@pytest.fixture
def run(media: Path, tiny_weights: Path, tmp_path: Path) -> Runs:
    reference = media / "image" / "AniPortrait_lyl.png"
    return Runs(tmp_path, reference=reference, weights=tiny_weights, width=128)


def test_a_short_form_is_the_same_flow(run: Runs, speech: Path) -> None:
    short = run("landmarks", "short", audio=speech, lips_gain=1.5)
    long = run("animate", "long", renderer="landmarks", mouth=f"audio:{speech}", lips_gain=1.5)
    assert short.read_bytes() == long.read_bytes()
    assert short.with_suffix(".npz").read_bytes() == long.with_suffix(".npz").read_bytes()
    found = json.loads(long.with_suffix(".json").read_bytes())
    assert (found["driver"], found["renderer"]) == ("audio2lmk", "landmarks") and found["conversions"]


def test_a_saved_motion_plays_as_it_was(run: Runs, speech: Path) -> None:
    saved = run("landmarks", "saved", audio=speech).with_suffix(".npz")
    again = run("animate", "again", renderer="landmarks", driver="file", motion=saved).with_suffix(".npz")
    one, two = read_landmark_file(saved), read_landmark_file(again)
    assert np.array_equal(one.mesh, two.mesh) and np.array_equal(one.landmarks, two.landmarks)


def test_parts_of_a_face_move_by_themselves(run: Runs, speech: Path, media: Path) -> None:
    clip = media / "video" / "Real3DPortrait_May_5s.mp4"
    alone = read_landmark_file(run("landmarks", "alone", audio=speech, pose="still").with_suffix(".npz"))
    out = run(
        "animate", "parts", renderer="landmarks", mouth=f"audio:{speech}", pose="still", eyes=f"video:{clip}",
        limit_seconds=0.8,
    )  # fmt: skip
    mixed = read_landmark_file(out.with_suffix(".npz"))
    inside = list(LOWER_FACE)
    assert len(mixed) == 20 and np.array_equal(mixed.mesh[:, inside], alone.mesh[:20, inside])
    assert not np.allclose(mixed.mesh, alone.mesh[:20], atol=0.01) and np.abs(mixed.pose).max() < 1e-9
    assert json.loads(out.with_suffix(".json").read_bytes())["driver"] == "audio2lmk, eyes: video"


def test_a_still_face_lasts_as_long_as_the_sound(run: Runs, speech: Path) -> None:
    found = read_landmark_file(
        run("animate", "still", renderer="landmarks", driver="still", audio=speech).with_suffix(".npz")
    )
    assert len(found) == 20 and np.ptp(found.mesh, axis=0).max() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"driver": "dance"}, "no driver 'dance'"),
        ({"driver": "still", "renderer": "paint"}, "no 'paint' among the renderers"),
        ({"driver": "video"}, "needs --driving FILE"),
        ({"mouth": "song:x"}, "--mouth is 'song:x', must be audio:FILE"),
        ({"driver": "still", "eyes": "video"}, "--eyes is 'video', must be keep"),
        ({"driver": "file", "motion": "MANIFEST.csv"}, "is no motion"),
        ({"driver": "still", "renderer": "lmk2video"}, "no pipeline"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Runs, media: Path, options: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = run.given | {"-o": run.folder / "o.mp4", "renderer": "landmarks"} | options
    given = {name: media / value if name == "motion" else value for name, value in given.items()}
    assert main(["animate", *(str(part) for key, value in given.items() for part in (_option(key), value))]) == 2
    assert said in capfd.readouterr().err and not list(run.folder.iterdir())
