"""Portraits: boxes cut out of images with the landmarks in them, the extent of a face, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.face.portrait import Crop, Face, Portrait


def a_face(scale: float = 0.2) -> Face:
    points = 0.5 + scale * np.random.default_rng(0).uniform(-1, 1, (478, 3)).astype(np.float32)
    points[468:] = np.nan
    return Face(points=points, blendshapes=None)


def test_beyond_the_border_it_is_repeated() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    crop = Crop(x0=-10, y0=5, x1=40, y1=45, image_width=30, image_height=40)
    cut = crop.cut(image)
    assert crop.padded and cut.shape == (40, 50, 3)
    assert np.array_equal(cut[:35, 10:40], image[5:]) and (cut[:35, :10] == image[5:, :1]).all()
    assert (cut[35:, 10:40] == image[-1:]).all()


@given(x0=st.integers(-50, 50), y0=st.integers(-50, 50), width=st.integers(80, 300), height=st.integers(80, 300))
def test_landmarks_keep_their_pixels(x0: int, y0: int, width: int, height: int) -> None:
    """Depth is in pixels of the width and has no corner."""
    crop = Crop(x0=x0, y0=y0, x1=x0 + width, y1=y0 + height, image_width=200, image_height=160)
    face = a_face()
    inside = face.cropped(crop)
    assert inside.points.dtype == np.float32 and np.isnan(inside.points[468:]).all()
    pixels = inside.points[:468] * (width, height, width) + (x0, y0, 0)
    np.testing.assert_allclose(pixels, face.points[:468] * (200, 160, 200), atol=1e-3)


def test_the_whole_image_changes_nothing() -> None:
    crop = Crop(x0=0, y0=0, x1=30, y1=40, image_width=30, image_height=40)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    assert crop.whole and not crop.padded and np.array_equal(crop.cut(image), image)


def test_extent_and_outside_leave_the_irises_out() -> None:
    face = a_face()
    assert face.outside == 0
    x0, y0, x1, y1 = face.extent
    assert 0.29 < x0 < 0.31 and 0.69 < x1 < 0.71 and 0.29 < y0 < 0.31 and 0.69 < y1 < 0.71
    points = face.points.copy()
    points[:117, 0] = -0.01
    points[:117, 1] = 1.01  # one landmark that leaves over two borders counts once
    assert Face(points=points, blendshapes=None).outside == 117 / 468
    portrait = Portrait(
        image=np.zeros((50, 100, 3), np.uint8), face=face, mesh=np.zeros((468, 3), np.float32), pose_matrix=np.eye(4)
    )
    assert (portrait.width, portrait.height) == (100, 50)
    assert portrait.face_px == (x0 * 100, y0 * 50, x1 * 100, y1 * 50)


def test_other_shapes_are_refused() -> None:
    mesh, image = np.zeros((468, 3), np.float32), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"landmarks \(478, 3\), not \(468, 3\)"):
        Face(points=mesh, blendshapes=None)
    with pytest.raises(ValueError, match=r"uint8, not \(8, 8, 3\) float64"):
        Portrait(image=image / 255, face=a_face(), mesh=mesh, pose_matrix=np.eye(4))
    with pytest.raises(ValueError, match="mesh"):
        Portrait(image=image, face=a_face(), mesh=np.zeros((478, 3), np.float32), pose_matrix=np.eye(4))
