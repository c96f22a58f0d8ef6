"""The one way in which images change their size: in training, when latents are written, and when users animate."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Images = TypeVar("Images", np.ndarray, "Tensor")


def resize_images(images: Images, width: int, height: int) -> Images:
    """Images in another size: each axis averaged where it shrinks, interpolated (bicubic) where it grows.

    The aspect ratio is not kept; crop before. Images that have the size already are returned as they are, uncopied.

    Args:
        images: uint8 `[N, 3, H, W]`, an array or a tensor on the CPU.
        width: Width of the result, pixels.
        height: Height of the result, pixels.

    Returns:
        uint8 `[N, 3, height, width]`, contiguous; an array for an array, a tensor for a tensor.

    Raises:
        ValueError: The images have another shape or type, or the size is not positive.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype != np.uint8 or 0 in array.shape[2:]:
        raise ValueError(f"images must be uint8 [N, 3, H, W], not {array.dtype} {list(array.shape)}")
    if width < 1 or height < 1:
        raise ValueError(f"images cannot be made {width}x{height} pixels large")
    if array.shape[2:] == (height, width):
        return images
    # OpenCV takes one image at a time, channels last.
    rows = array.transpose(0, 2, 3, 1)  # [N, H, W, 3]
    result = np.empty((len(rows), height, width, 3), np.uint8)
    for image, place in zip(rows, result, strict=True):
        place[...] = resize_image(np.ascontiguousarray(image), width, height)
    resized = np.ascontiguousarray(result.transpose(0, 3, 1, 2))
    if isinstance(images, np.ndarray):
        return resized
    import torch

    return torch.from_numpy(resized)


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """One image, uint8 `[H, W, 3]` → `[height, width, 3]`, by the rule of `resize_images`."""
    # Shrink first, so that the bicubic step only ever enlarges: it would alias where an axis shrinks.
    shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
    if shrunk != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def middle_box(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """The largest box of another aspect ratio in the middle of an image: left, top, width, height in pixels.

    Args:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        to_width: Numerator of the aspect ratio `to_width / to_height` of the box.
        to_height: Denominator of that aspect ratio.
    """
    across = min(width, round(height * to_width / to_height))
    down = min(height, round(width * to_height / to_width))
    return (width - across) // 2, (height - down) // 2, across, down


def fit_images(images: Images, width: int, height: int) -> Images:
    """Images cropped to the aspect ratio of another size around their middle, then resized, as training uses a clip.

    Arguments, result and errors are those of `resize_images`.
    """
    left, top, across, down = middle_box(images.shape[3], images.shape[2], width, height)
    return resize_images(images[:, :, top : top + down, left : left + across], width, height)


def fit_landmarks(points: np.ndarray, image: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Landmarks of an image, moved to where `fit_images` puts them.

    Args:
        points: `[…, 2 or more]`, x and y as fractions of the image's width and height.
        image: Width and height of the image, pixels.
        size: Width and height of the image that `fit_images` makes of it, pixels.

    Returns:
        Landmarks of the same shape and type, x and y as fractions of the new image; other columns stay.
    """
    left, top, across, down = middle_box(*image, *size)
    if (across, down) == image:
        return points
    # Only the crop moves them: fractions do not change in the resize after it.
    placed = points.copy()
    placed[..., 0] = (placed[..., 0] * image[0] - left) / across
    placed[..., 1] = (placed[..., 1] * image[1] - top) / down
    return placed
