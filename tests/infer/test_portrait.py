"""Portraits: every kind of image, the choice of a face, and the same landmarks as in the annotation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotate.engines import make_engine
from infer.portrait import LISTED_FACES, choose_face, describe_portrait, read_portrait
from infer.portrait_checks import MANY_OUTSIDE
from talkinghead.face.model import FaceModel
from talkinghead.geometry.camera import project


@pytest.mark.parametrize(
    "name", ["AniPortrait_lyl.png", "SadTalker_art_6.png", "SadTalker_happy1.png", "SadTalker_full_body_1.png"]
)
def test_every_mode_gives_the_annotation_and_projects_back(media: Path, face_model: FaceModel, name: str) -> None:
    """RGBA, palette, a JPEG called .png: landmarks equal the annotation's, and mesh and pose project onto them."""
    portrait = read_portrait(media / "image" / name, face_model)
    annotated = make_engine("litert", face_model)([portrait.image])
    assert np.array_equal(portrait.face.points, annotated.points[0])
    assert portrait.face.blendshapes is not None
    assert np.array_equal(portrait.face.blendshapes, annotated.blendshapes[0])
    pixels = project(portrait.mesh, portrait.pose_matrix, portrait.width, portrait.height)
    away = pixels - portrait.face.points[:468, :2] * (portrait.width, portrait.height)
    assert np.abs(away).max() < 0.01
    assert portrait.face.outside == 0


def test_exif_orientation(media: Path, face_model: FaceModel) -> None:
    """An image stored sideways, with an EXIF mark for it, is read upright and has the same face."""
    upright = read_portrait(media / "image" / "tfjs-models_portrait.jpg", face_model)
    lying = read_portrait(media / "derived" / "portrait_exif6.jpg", face_model)
    assert lying.image.shape == upright.image.shape
    assert np.abs(lying.face.points[:, :2] - upright.face.points[:, :2]).max() < 0.005


def test_several_faces(media: Path, face_model: FaceModel) -> None:
    path = media / "image" / "tfjs-models_three_people.jpg"
    with pytest.raises(ValueError, match=r"3 faces in .*face 0 at x 1\d\d to 2\d\d.*face 2 at .*--face 0 … 2 or"):
        read_portrait(path, face_model)
    faces = [read_portrait(path, face_model, face=str(number)).face for number in range(3)]
    centres = [sum(face.extent[::2]) for face in faces]
    assert centres == sorted(centres), "left to right"
    largest = read_portrait(path, face_model, face="largest").face
    assert largest.extent == faces[1].extent, "the man in the middle"
    for number, pixel in enumerate(("180,140", "400,500", "1040,10")):
        assert read_portrait(path, face_model, face=pixel).face.extent == faces[number].extent
    for choice, message in [("3", "there is no face 3"), ("left", "must be a number"), ("-1", "must be a number")]:
        with pytest.raises(ValueError, match=message):
            read_portrait(path, face_model, face=choice)


@pytest.mark.parametrize("name", ["dlib_dogs.jpg", "scikit-image_chelsea.png"])
def test_no_face(media: Path, face_model: FaceModel, name: str) -> None:
    """A cat, and dogs that the detector takes for a face, but the landmark network does not."""
    with pytest.raises(ValueError, match="no face was found"):
        read_portrait(media / "image" / name, face_model, face="largest")


def test_a_face_cut_by_the_border(media: Path, face_model: FaceModel) -> None:
    portrait = read_portrait(media / "image" / "face_recognition_obama_partial_face.jpg", face_model)
    assert MANY_OUTSIDE < portrait.face.outside < 0.3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_portrait_is_put_upright(
    media: Path, face_model: FaceModel, tmp_path: Path, degrees: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a mark in the file, as messengers leave photos; the result is the upright portrait, to the bit."""
    upright = read_portrait(media / "image" / "tfjs-models_portrait.jpg", face_model)
    assert not caplog.text and "turned_deg" not in describe_portrait(media / "MANIFEST.csv", upright, "")
    file = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(upright.image, degrees // 90))).save(file)
    portrait = read_portrait(file, face_model)
    assert np.array_equal(portrait.image, upright.image)
    assert np.array_equal(portrait.face.points, upright.face.points) and np.array_equal(portrait.mesh, upright.mesh)
    assert describe_portrait(file, portrait, "")["turned_deg"] == degrees
    assert f"{file} is " in caplog.text and f"turned by {degrees}°" in caplog.text


def test_a_crowd_is_listed_shortly(media: Path, face_model: FaceModel) -> None:
    """Twenty-two faces: the largest are named, and how many there are."""
    face = read_portrait(media / "image" / "AniPortrait_lyl.png", face_model).face
    crowd = []
    for number in range(22):
        size = 0.02 + 0.001 * (number % 7)
        points = (face.points - face.points[0]) * size + (0.03 + number * 0.04, 0.5, 0)
        crowd.append(replace(face, points=points.astype(np.float32)))
    with pytest.raises(
        ValueError, match=r"^22 faces in crowd\.jpg, which is meant\? the largest: face 5 at "
    ) as caught:
        choose_face(crowd, 2000, 1000, None, "crowd.jpg")
    assert str(caught.value).count(" at x ") == LISTED_FACES and "; and 17 smaller" in str(caught.value)
    assert "--face 0 … 21 or --face largest" in str(caught.value) and len(str(caught.value)) < 500
    assert choose_face(crowd, 2000, 1000, "21", "crowd.jpg") is crowd[21]
