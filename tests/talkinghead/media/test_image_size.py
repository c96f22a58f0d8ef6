"""One resize for all: averages where images shrink, cuts around the middle, takes arrays and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.media.image_size import fit_images, middle_box, resize_images

SIDES = st.integers(1, 40)


def noise(number: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (number, 3, height, width), np.uint8)


@given(SIDES, SIDES, SIDES, SIDES)
def test_sizes_and_flat_images(width: int, height: int, to_width: int, to_height: int) -> None:
    flat = np.full((2, 3, height, width), 77, np.uint8)
    resized = resize_images(flat, to_width, to_height)
    assert resized.shape == (2, 3, to_height, to_width) and resized.flags.c_contiguous
    assert (resized == 77).all()


def test_shrinking_averages_and_growing_interpolates() -> None:
    image = noise(1, 32, 16)
    halved = resize_images(image, 16, 8)
    means = image.reshape(1, 3, 8, 2, 16, 2).mean(axis=(3, 5))
    assert np.abs(halved - means).max() <= 0.5
    # One axis shrinks, the other grows: the shrinking one still averages every pixel.
    stripes = np.zeros((1, 3, 8, 64), np.uint8)
    stripes[..., ::2] = 200
    assert (np.abs(resize_images(stripes, 8, 16).astype(int) - 100) <= 1).all()


def test_images_do_not_depend_on_their_neighbours() -> None:
    images = noise(3, 20, 30)
    together = resize_images(images, 13, 50)
    for number in range(3):
        assert np.array_equal(resize_images(images[number : number + 1], 13, 50)[0], together[number])


def test_arrays_tensors_and_views_are_the_same() -> None:
    images = noise(2, 24, 24)
    expected = resize_images(images, 16, 8)
    tensor = resize_images(torch.from_numpy(images), 16, 8)
    assert isinstance(tensor, torch.Tensor) and torch.equal(tensor, torch.from_numpy(expected))
    view = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(resize_images(view, 16, 8), expected)
    assert resize_images(images, 24, 24) is images


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_middle_is_inside_and_as_large_as_can_be(width: int, height: int, to_width: int, to_height: int) -> None:
    left, top, across, down = middle_box(width, height, to_width, to_height)
    assert left >= 0 and top >= 0 and left + across <= width and top + down <= height
    assert across == width or down == height
    assert abs(2 * left + across - width) <= 1 and abs(2 * top + down - height) <= 1


def test_fitting_keeps_the_aspect() -> None:
    image = np.zeros((1, 3, 40, 80), np.uint8)
    image[:, :, :, 20:60] = 255
    assert (fit_images(image, 16, 16) == 255).all()
    assert np.array_equal(fit_images(image, 32, 16), resize_images(image, 32, 16))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\[3, 8, 8\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\[1, 8, 8, 3\]"),
        (np.zeros((1, 3, 8, 8), np.float32), "float32"),
    ],
)
def test_other_arrays_are_refused(images: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resize_images(images, 4, 4)
    with pytest.raises(ValueError, match="0x4"):
        resize_images(np.zeros((1, 3, 8, 8), np.uint8), 0, 4)
