"""Framing of a portrait: the size of the video, the box of the portrait that is animated, and pasting it back.

The networks were trained on faces that fill about the same share of the image, with the middle a little below the
image's middle, and `face_crop` frames a face in this way. Its box stays inside the portrait where it can, and grows no
larger than it; only where the face itself does not fit into the wanted aspect does the box reach beyond, and the
border's pixels are repeated there.

Convention: x to the right, y down, both from the image's top left corner; boxes include x0 and y0 and exclude x1 and
y1; aspect is width / height.
"""

from __future__ import annotations

import numpy as np

from infer.request import PREVIEW_SIDE
from talkinghead.face.portrait import Crop
from talkinghead.media.image_size import resize_image
from talkinghead.media.talking_video import check_video_size

FACE_SHARE = 0.57
"""Share of the crop that the face's landmarks take, in height or width, whichever is larger. The median of HDTF's clips
is 0.6."""
FACE_CENTRE_Y = 0.55
"""Height of the landmarks' middle in the crop, from the top, as a share: hair needs more room than neck."""
TIGHTEST = 0.8
"""Largest share of the crop that a face may take; a larger one would be cut when it moves."""

FEATHER = 0.12
"""Width of the border over which the animated part fades into the image, as a share of the crop's shorter side."""

Extent = tuple[float, float, float, float]
"""Box x0, y0, x1, y1 in pixels."""


def video_size(width: int, height: int, asked_width: int | None, asked_height: int | None) -> tuple[int, int]:
    """Size of the video of `infer landmarks` in pixels.

    A side that is not given follows from the other one and the portrait's aspect; without both, the size is the
    portrait's. Sides that are not given are rounded down to even numbers, as H.264 needs them.

    Args:
        width: Width of the portrait in pixels.
        height: Height of the portrait in pixels.
        asked_width: Wanted width in pixels, or None.
        asked_height: Wanted height in pixels, or None.

    Raises:
        ValueError: The size cannot be encoded.
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
    """Width and height in pixels of the images that `infer audio` and `infer video` generate.

    Args:
        width: Wanted width in pixels; None: chosen.
        height: Wanted height in pixels; None: chosen.
        trained: Width and height in pixels of the images that the weights were trained on.
        aspect: Width / height for sides that are chosen; None: the trained aspect.
        step: Number of pixels of which both sides are multiples.
        preview: Whether to shrink the size until no side is longer than `PREVIEW_SIDE`.

    Raises:
        ValueError: A wanted side is no multiple of `step`; the message names the nearest ones.
    """
    _check_multiples(width, height, step)
    if width is None or height is None:
        free = trained[0] / trained[1] if aspect is None else aspect
        if width is not None:
            height = _rounded(width / free, step)
        elif height is not None:
            width = _rounded(height * free, step)
        else:
            # As many pixels as in training, in the free aspect.
            area = trained[0] * trained[1]
            width, height = _rounded((area * free) ** 0.5, step), _rounded((area / free) ** 0.5, step)
    # A preview has the same aspect, as far as the step allows.
    if preview and max(width, height) > PREVIEW_SIDE:
        shrink = PREVIEW_SIDE / max(width, height)
        width, height = _rounded(width * shrink, step), _rounded(height * shrink, step)
    return width, height


def _rounded(length: float, step: int) -> int:
    return max(step, round(length / step) * step)


def _check_multiples(width: int | None, height: int | None, step: int) -> None:
    for name, side in (("--width", width), ("--height", height)):
        if side is not None and side % step:
            # The multiples below and above; 0 is no size.
            near = sorted({max(step, side // step * step), side // step * step + step})
            raise ValueError(
                f"{name} is {side}, but with these weights it must be a multiple of {step}: take"
                f" {' or '.join(map(str, near))}"
            )


def face_crop(face: Extent, image_width: int, image_height: int, aspect: float, share: float = FACE_SHARE) -> Crop:
    """Box around a face, in which the face has a share of the height or width.

    Args:
        face: Extent of the face's landmarks in pixels.
        image_width: Width of the image in pixels.
        image_height: Height of the image in pixels.
        aspect: Wanted width / height of the box.
        share: Share of the box that the extent takes, up to `TIGHTEST`.
    """
    return _box(face, image_width, image_height, aspect, share)


def whole_crop(face: Extent, image_width: int, image_height: int, aspect: float) -> Crop:
    """Largest box of an aspect that fits into an image: the image itself where the aspect is the image's.

    The box is moved so that the face is in it, and reaches beyond the image where the face would be cut. Arguments as
    for `face_crop`.
    """
    return _box(face, image_width, image_height, aspect, 0.0)


def _box(face: Extent, image_width: int, image_height: int, aspect: float, share: float) -> Crop:
    """Box in which the face has a share of the height or width, or more where the image is too small; 0: largest."""
    # Height: what the share asks for, but no more than the image has, and no less than the face needs to move.
    x0, y0, x1, y1 = face
    needed = max(y1 - y0, (x1 - x0) / aspect)
    largest = min(float(image_height), image_width / aspect)
    height = largest if share == 0 else min(needed / share, largest)
    height = max(height, needed / TIGHTEST)

    # Place: centred on the face, then moved into the image.
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
    """Begin of an interval moved into 0 … `available` by the shortest way; a longer one is moved to cover all of it."""
    if length <= available:
        return min(max(begin, 0), available - length)
    return max(min(begin, 0), available - length)


class PasteBack:
    """Function that pastes animated frames of a crop back into the image that the crop was cut from.

    In a border of `FEATHER` inside the crop, the frame fades into the image. Sides where the crop ends with the image,
    or beyond it, do not fade.

    Args:
        image: RGB uint8 `[H, W, 3]`. With an odd side, its last row or column is left out: videos need even sides.
        crop: Box of the image that is animated.
    """

    def __init__(self, image: np.ndarray, crop: Crop) -> None:
        self._crop = crop
        height, width = (side // 2 * 2 for side in image.shape[:2])
        self._image = np.ascontiguousarray(image[:height, :width])
        # The part of the crop inside the image, and the weight of the frame there, [h, w, 1] in [0, 1]. What the image
        # adds to the blend is the same in every frame, so it is computed once.
        self._top, self._left = max(0, crop.y0), max(0, crop.x0)
        self._bottom, self._right = min(height, crop.y1), min(width, crop.x1)
        weight = _fade(crop.y0, crop.y1, image.shape[0], crop)[:, None] * _fade(crop.x0, crop.x1, image.shape[1], crop)
        self._weight = self._part(weight)[:, :, None].astype(np.float32)
        self._under = (self._image[self._top : self._bottom, self._left : self._right] * (1 - self._weight)).astype(
            np.float32
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result in pixels, even."""
        return self._image.shape[1], self._image.shape[0]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Paste a frame.

        Args:
            frame: Frame of the crop, RGB uint8 `[h, w, 3]` in any size.

        Returns:
            The image with the frame in its place, RGB uint8 `[height, width, 3]`; a new array.
        """
        fitted = self._part(resize_image(frame, self._crop.width, self._crop.height))
        result = self._image.copy()
        blended = self._under + fitted * self._weight
        result[self._top : self._bottom, self._left : self._right] = np.rint(blended).astype(np.uint8)
        return result

    def _part(self, values: np.ndarray) -> np.ndarray:
        """Part of an array over the crop `[crop height, crop width, …]` that lies inside the image."""
        crop = self._crop
        return values[self._top - crop.y0 : self._bottom - crop.y0, self._left - crop.x0 : self._right - crop.x0]


def _fade(begin: int, end: int, available: int, crop: Crop) -> np.ndarray:
    """Weight of the frame along one axis of the crop, `[end - begin]`: 0 at borders inside the image, rising to 1."""
    middles = np.arange(end - begin) + 0.5  # of the pixels, from the crop's border
    width = FEATHER * min(crop.width, crop.height)
    near = np.ones(end - begin)
    if begin > 0:
        near = np.minimum(near, middles / width)
    if end < available:
        near = np.minimum(near, middles[::-1] / width)
    return near * near * (3 - 2 * near)  # smoothstep: no edge where the fading begins or ends
