"""How a portrait is framed: the size of the video, the box of the portrait that is animated, and the way back.

The networks have seen faces that fill a part of the image, centred a little below its middle, so that is what they
get: `face_crop`. Its box stays inside the portrait where it can, and grows no larger than it; only where the face
itself would not fit into the wanted aspect does it reach beyond, and the border's pixels are repeated there.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from infer.request import PREVIEW_SIDE
from talkinghead.media.image_size import resize_image
from talkinghead.media.talking_video import check_video_size

FACE_SHARE = 0.57
"""Height (or width, where that is more) of the face's landmarks in the crop: the median of HDTF's clips is 0.6."""
FACE_CENTRE_Y = 0.55
"""Where their middle is, from the top: hair needs more room than neck."""
_TIGHTEST = 0.8  # share of the crop above which a face would be cut when it moves

FEATHER = 0.12
"""Width of the border over which the animated part fades into the image, as a share of the crop's shorter side."""

Extent = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


def video_size(width: int, height: int, asked_width: int | None, asked_height: int | None) -> tuple[int, int]:
    """Size of the video of `infer landmarks`, for a reference of `width` x `height` pixels.

    What is not asked for follows from the other side; with neither it is the reference's size. Made even, downwards.

    Raises:
        ValueError: A size that cannot be encoded.
    """
    if asked_width is not None and asked_height is not None:
        size = (asked_width, asked_height)
    elif asked_width is not None:
        size = (asked_width, _even(height * asked_width / width))
    elif asked_height is not None:
        size = (_even(width * asked_height / height), asked_height)
    else:
        size = (_even(width), _even(height))
    try:
        check_video_size(*size)
    except ValueError as error:
        raise ValueError(f"{error}; set --width and --height") from error
    return size


def _even(length: float) -> int:
    return int(length) // 2 * 2


def frame_size(
    width: int | None, height: int | None, *, trained: tuple[int, int], aspect: float | None, step: int, preview: bool
) -> tuple[int, int]:
    """Width and height of the images that `infer audio` and `infer video` generate.

    Args:
        width: Width that is asked for, pixels; None: what suits the rest.
        height: Height that is asked for, pixels; None: what suits the rest.
        trained: Width and height that the weights know.
        aspect: Width / height where it is free; None: the trained one.
        step: Both sides are multiples of this.
        preview: Make it no larger than `PREVIEW_SIDE`.

    Raises:
        ValueError: What is asked for is no multiple of `step`; names the nearest that are.
    """
    _check_multiples(width, height, step)
    if width is None or height is None:
        free = trained[0] / trained[1] if aspect is None else aspect
        if width is not None:
            height = _rounded(width / free, step)
        elif height is not None:
            width = _rounded(height * free, step)
        else:
            area = trained[0] * trained[1]
            width, height = _rounded((area * free) ** 0.5, step), _rounded((area / free) ** 0.5, step)
    if preview and max(width, height) > PREVIEW_SIDE:
        shrink = PREVIEW_SIDE / max(width, height)
        width, height = _rounded(width * shrink, step), _rounded(height * shrink, step)
    return width, height


def _rounded(length: float, step: int) -> int:
    return max(step, round(length / step) * step)


def _check_multiples(width: int | None, height: int | None, step: int) -> None:
    for name, side in (("--width", width), ("--height", height)):
        if side is not None and side % step:
            near = sorted({max(step, side // step * step), side // step * step + step})
            raise ValueError(
                f"{name} is {side}, but with these weights it must be a multiple of {step}: take"
                f" {' or '.join(map(str, near))}"
            )


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A box of whole pixels in an image of `image_width` x `image_height`; it may reach beyond the image."""

    x0: int
    y0: int
    x1: int
    y1: int
    image_width: int
    image_height: int

    def __post_init__(self) -> None:
        assert self.x0 < self.x1 and self.y0 < self.y1, f"an empty crop: {self}"
        assert self.x0 < self.image_width and self.y0 < self.image_height and self.x1 > 0 and self.y1 > 0

    @property
    def width(self) -> int:
        """Width in pixels of the image."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Height in pixels of the image."""
        return self.y1 - self.y0

    @property
    def padded(self) -> bool:
        """Whether it reaches beyond the image."""
        return self.x0 < 0 or self.y0 < 0 or self.x1 > self.image_width or self.y1 > self.image_height

    @property
    def whole(self) -> bool:
        """Whether it is the image itself."""
        return (self.x0, self.y0, self.x1, self.y1) == (0, 0, self.image_width, self.image_height)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The box's pixels: `[H, W, 3]` → `[height, width, 3]`; beyond the image its border is repeated."""
        assert image.shape[:2] == (self.image_height, self.image_width), f"{image.shape} is another image"
        top, left = max(0, -self.y0), max(0, -self.x0)
        bottom, right = max(0, self.y1 - self.image_height), max(0, self.x1 - self.image_width)
        inside = image[max(0, self.y0) : self.y1, max(0, self.x0) : self.x1]
        return cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REPLICATE)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Landmarks of the image as landmarks of the crop.

        Args:
            points: `[..., N, 3]`: x/W, y/H, z/W of the image.

        Returns:
            The same points, by the crop's width and height, in the same dtype.
        """
        size = np.array([self.image_width, self.image_height, self.image_width], np.float64)
        origin = np.array([self.x0, self.y0, 0.0])
        return ((points * size - origin) / (self.width, self.height, self.width)).astype(points.dtype)


def face_crop(face: Extent, image_width: int, image_height: int, aspect: float) -> Crop:
    """The box around a face.

    Args:
        face: Extent of its landmarks in pixels.
        image_width: Width of the image, pixels.
        image_height: Height of the image, pixels.
        aspect: Wanted width / height.
    """
    return _box(face, image_width, image_height, aspect, FACE_SHARE)


def whole_crop(face: Extent, image_width: int, image_height: int, aspect: float) -> Crop:
    """The largest box of an aspect that fits into an image: the image itself where the aspect is its own.

    It is moved so that the face is in it, and reaches beyond the image where the face would be cut. The
    arguments are those of `face_crop`.
    """
    return _box(face, image_width, image_height, aspect, 0.0)


def _box(face: Extent, image_width: int, image_height: int, aspect: float, share: float) -> Crop:
    """A box in which the face has a share of the height and of the width, or more where the image ends before."""
    x0, y0, x1, y1 = face
    needed = max(y1 - y0, (x1 - x0) / aspect)
    largest = min(float(image_height), image_width / aspect)
    height = largest if share == 0 else min(needed / share, largest)
    height = max(height, needed / _TIGHTEST)
    box_width, box_height = max(1, round(height * aspect)), max(1, round(height))
    left = _inside(round((x0 + x1 - box_width) / 2), box_width, image_width)
    top = _inside(round((y0 + y1) / 2 - FACE_CENTRE_Y * box_height), box_height, image_height)
    return Crop(
        x0=left,
        y0=top,
        x1=left + box_width,
        y1=top + box_height,
        image_width=image_width,
        image_height=image_height,
    )


def _inside(begin: int, length: int, available: int) -> int:
    """Where an interval begins when it is moved into 0 … `available`; as near as can be where it is longer."""
    if length <= available:
        return min(max(begin, 0), available - length)
    return max(min(begin, 0), available - length)


class PasteBack:
    """Puts animated frames of a crop back into the image that the crop was cut from.

    Inside the crop's border of `FEATHER` the frame fades into the image; at sides where the crop ends with the
    image there is nothing to fade into, and it does not.
    """

    def __init__(self, image: np.ndarray, crop: Crop) -> None:
        """Prepare the mask.

        Args:
            image: RGB uint8 `[H, W, 3]`. With an odd side its last row or column is left out: videos need even ones.
            crop: The part of it that is animated.
        """
        self._crop = crop
        height, width = (side // 2 * 2 for side in image.shape[:2])
        self._image = np.ascontiguousarray(image[:height, :width])
        self._top, self._left = max(0, crop.y0), max(0, crop.x0)
        self._bottom, self._right = min(height, crop.y1), min(width, crop.x1)
        weight = _fade(crop.y0, crop.y1, image.shape[0], crop)[:, None] * _fade(crop.x0, crop.x1, image.shape[1], crop)
        self._weight = self._part(weight)[:, :, None].astype(np.float32)
        self._under = (self._image[self._top : self._bottom, self._left : self._right] * (1 - self._weight)).astype(
            np.float32
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result, even."""
        return self._image.shape[1], self._image.shape[0]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """A frame of the crop, RGB uint8 in any size, in its place: RGB uint8 `[height, width, 3]`, a new array."""
        fitted = self._part(resize_image(frame, self._crop.width, self._crop.height))
        result = self._image.copy()
        blended = self._under + fitted * self._weight
        result[self._top : self._bottom, self._left : self._right] = np.rint(blended).astype(np.uint8)
        return result

    def _part(self, values: np.ndarray) -> np.ndarray:
        """The part of an array over the crop that lies in the image."""
        crop = self._crop
        return values[self._top - crop.y0 : self._bottom - crop.y0, self._left - crop.x0 : self._right - crop.x0]


def _fade(begin: int, end: int, available: int, crop: Crop) -> np.ndarray:
    """Weight of the frame along one axis of the crop: 0 at its border, 1 inside; `[end - begin]`."""
    middles = np.arange(end - begin) + 0.5
    width = FEATHER * min(crop.width, crop.height)
    near = np.ones(end - begin)
    if begin > 0:
        near = np.minimum(near, middles / width)
    if end < available:
        near = np.minimum(near, middles[::-1] / width)
    return near * near * (3 - 2 * near)
