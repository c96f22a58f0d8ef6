"""The one way in which pictures change their size: in training, when latents are written, and when users animate."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Pictures = TypeVar("Pictures", np.ndarray, "Tensor")


def resize_pictures(pictures: Pictures, width: int, height: int) -> Pictures:
    """Pictures in another size: each axis averaged where it shrinks, interpolated (bicubic) where it grows.

    The aspect is not kept; crop before. Pictures that have the size already come back as they are, uncopied.

    Args:
        pictures: uint8 `[N, 3, H, W]`, an array or a tensor on the CPU.
        width: Width that is wanted, pixels.
        height: Height that is wanted, pixels.

    Returns:
        uint8 `[N, 3, height, width]`, contiguous, of the kind that was given.

    Raises:
        ValueError: The pictures are of another shape or type, or the size is not positive.
    """
    array = np.asarray(pictures)
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype != np.uint8 or 0 in array.shape[2:]:
        raise ValueError(f"pictures must be uint8 [N, 3, H, W], not {array.dtype} {list(array.shape)}")
    if width < 1 or height < 1:
        raise ValueError(f"pictures cannot be made {width}x{height} pixels large")
    if array.shape[2:] == (height, width):
        return pictures
    images = array.transpose(0, 2, 3, 1)
    result = np.empty((len(images), height, width, 3), np.uint8)
    for image, place in zip(images, result, strict=True):
        place[...] = resize_picture(np.ascontiguousarray(image), width, height)
    resized = np.ascontiguousarray(result.transpose(0, 3, 1, 2))
    if isinstance(pictures, np.ndarray):
        return resized
    import torch

    return torch.from_numpy(resized)


def resize_picture(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """One picture, uint8 `[H, W, 3]` → `[height, width, 3]`, as `resize_pictures` has it."""
    shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
    if shrunk != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def middle_box(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """The largest box of another aspect in the middle of a picture: left, top, width, height in pixels.

    Args:
        width: Width of the picture, pixels.
        height: Height of the picture, pixels.
        to_width: The aspect that is wanted is to_width / to_height.
        to_height: Its other number.
    """
    across = min(width, round(height * to_width / to_height))
    down = min(height, round(width * to_height / to_width))
    return (width - across) // 2, (height - down) // 2, across, down


def fit_pictures(pictures: Pictures, width: int, height: int) -> Pictures:
    """Pictures cut to the aspect of another size around their middle, then resized: what training sees of a clip.

    Arguments, result and errors are those of `resize_pictures`.
    """
    left, top, across, down = middle_box(pictures.shape[3], pictures.shape[2], width, height)
    return resize_pictures(pictures[:, :, top : top + down, left : left + across], width, height)


def fit_landmarks(points: np.ndarray, picture: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Landmarks of a picture where `fit_pictures` puts them.

    Args:
        points: `[…, 2 or more]`, x and y in shares of the picture's width and height.
        picture: Width and height of the picture.
        size: Width and height of what is made of it.

    Returns:
        The same shape and type, x and y in shares of what is made; other columns stay.
    """
    left, top, across, down = middle_box(*picture, *size)
    if (across, down) == picture:
        return points
    placed = points.copy()
    placed[..., 0] = (placed[..., 0] * picture[0] - left) / across
    placed[..., 1] = (placed[..., 1] * picture[1] - top) / down
    return placed
