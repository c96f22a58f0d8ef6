"""Small images of frames: their size, and that frames pass by unchanged and are not kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from annotate.small_images import SMALL_SIZE, SmallImages, small_image


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [
        (512, 512, (128, 128)),
        (256, 512, (64, 128)),
        (1080, 607, (128, 72)),
        (130, 129, (128, 127)),
        (64, 96, (85, 128)),
        (2048, 1, (128, 1)),
    ],
)
def test_the_longer_side_is_the_same_for_all(height: int, width: int, shape: tuple[int, int]) -> None:
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2] = (90, 160, 30)
    image = small_image(frame)
    assert image.shape == shape and image.dtype == np.uint8 and max(shape) == SMALL_SIZE
    grey = 0.299 * 90 + 0.587 * 160 + 0.114 * 30
    np.testing.assert_allclose(image[: shape[0] // 2 - 1].astype(float), grey, atol=1)
    assert (image[shape[0] // 2 + 1 :] == 0).all()


def test_frames_pass_and_are_not_kept() -> None:
    draws = np.random.default_rng(0)
    frames: list[weakref.ref[np.ndarray]] = []

    def clip() -> Iterator[np.ndarray]:
        for _ in range(30):
            frame = draws.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            frames.append(weakref.ref(frame))
            yield frame

    images = SmallImages()
    most = 0
    for frame in images.watch(clip()):
        assert frame is frames[-1]()
        most = max(most, sum(reference() is not None for reference in frames))
    assert most <= 2
    assert images.stacked().shape == (30, 128, 128)
    assert SmallImages().stacked().shape[0] == 0
