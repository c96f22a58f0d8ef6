"""Reads image files: only formats that are meant, no larger than stated, upright, in sRGB, on white.

Pillow knows some forty formats, and for one of them (EPS) it starts another program, whatever the file's name; so each
file is opened as one of `FORMATS` or not at all. Its size is checked by its header, before a pixel is decoded.

Photos of 108 or 200 megapixels come as JPEG. Its decoder can give a half, a quarter or an eighth of the size without
the whole image in memory (fewer coefficients of each block are transformed back), and so such photos are read.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from talkinghead.files.foreign import open_regular
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.limits import IMAGE_BYTES, IMAGE_PIXELS, TO_JPEG, check_image_pixels, check_jpeg_pixels

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats that are opened, by Pillow's names."""
FORMATS_TEXT = "PNG, JPEG, WebP or BMP"
"""The same for messages."""

_JPEG = b"\xff\xd8\xff"  # first bytes of a JPEG
_REDUCTIONS = (1, 2, 4, 8)  # what JPEG's decoder can divide the sides by
_BACKGROUND = (255, 255, 255)  # RGB colour of transparent pixels
_ROWS = 256  # rows whose colours are converted at once, so that a whole image is there once and not five times
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation → what makes the image upright (EXIF 2.3, table 6)."""


def read_image(path: Path) -> np.ndarray:
    """An image as sRGB uint8 `[H, W, 3]`, upright by its EXIF data; of an animation, the first image.

    A JPEG of more than `IMAGE_PIXELS` is read at a half, a quarter or an eighth of its size, and that is logged.

    Args:
        path: File in one of `FORMATS`, whatever its name says.

    Raises:
        ValueError: The file is missing, too large, damaged, or no such image; the message names it.
    """
    with open_image(path, reduced=True) as opened:
        _reduce(opened, path)
        opened.load()
        turn = _UPRIGHT.get(opened.getexif().get(_ORIENTATION, 1))
        upright = opened if turn is None else opened.transpose(turn)
        to_srgb = _to_srgb(upright, path)
        # A part at a time: every step treats a pixel for itself.
        width, height = upright.size
        result = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, _ROWS):
            part = upright.crop((0, top, width, min(height, top + _ROWS)))
            result[top : top + _ROWS] = np.asarray(_on_white(to_srgb(part)))
        return result


def header_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image in pixels as its header says, checked before another library decodes it.

    Args:
        data: Content of the file.
        name: Name of the file, for messages.

    Raises:
        ValueError: It is in none of `FORMATS`, too large, or damaged.
    """
    with _opened(io.BytesIO(data), name) as image:
        return image.size


@contextmanager
def open_image(path: Path, *, reduced: bool = False) -> Iterator[Image.Image]:
    """Open an image without decoding it; what Pillow raises within the context becomes one line.

    Args:
        path: File in one of `FORMATS`.
        reduced: Whether a large JPEG is let through, because the caller decodes it at a part of its size.

    Raises:
        ValueError: The file is missing, too large, damaged, or in none of `FORMATS`; the message names it.
    """
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        raise UnreadableMediaError("not_found", f"the image {path} is not there") from None
    except OSError as error:
        raise ValueError(f"the image {path} is damaged or cannot be read: {error}") from error
    with stream, _opened(stream, str(path), reduced=reduced) as image:
        yield image


@contextmanager
def _opened(stream: BinaryIO, name: str, *, reduced: bool = False) -> Iterator[Image.Image]:
    try:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if size > IMAGE_BYTES:
            raise UnreadableMediaError(
                "too_large", f"the image {name} is too large: {size:,} bytes, and {IMAGE_BYTES:,} are the most"
            )
        with warnings.catch_warnings():
            # Pillow warns, or raises far above, where `check_image_pixels` has refused already; and of odd metadata.
            warnings.simplefilter("ignore")
            jpeg = stream.read(len(_JPEG)) == _JPEG
            stream.seek(0)
            # A JPEG is opened as such: `Image.open` refuses any of more than 179 megapixels, however it is decoded.
            with JpegImagePlugin.JpegImageFile(stream) if jpeg else Image.open(stream, formats=FORMATS) as image:
                if reduced and jpeg:
                    check_jpeg_pixels(name, *image.size, progressive="progressive" in image.info)
                else:
                    check_image_pixels(name, *image.size)
                yield image
    except UnreadableMediaError:
        raise
    except UnidentifiedImageError:
        raise UnreadableMediaError(
            "not_media", f"{name} is not an image that can be read: take a {FORMATS_TEXT}"
        ) from None
    except Image.DecompressionBombError:
        raise UnreadableMediaError(
            "too_large",
            f"the image {name} is too large: it has more than {IMAGE_PIXELS / 1e6:.0f} million pixels, the most that"
            f" is read; {TO_JPEG}",
        ) from None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error) as error:
        # Pillow's decoders and EXIF reader raise all of these for damaged files.
        raise ValueError(f"the image {name} is damaged or cannot be read: {error}") from error


def _reduce(image: Image.Image, path: Path) -> None:
    """Have the decoder give an image that is too large at the largest part of its size that is not."""
    width, height = image.size
    by = next(by for by in _REDUCTIONS if (-(-width // by)) * (-(-height // by)) <= IMAGE_PIXELS)
    if by > 1:
        image.draft(image.mode, (width // by, height // by))
        log.info(
            "the image %s has %.0f megapixels: it is read at 1/%d of its size, %dx%d, in which pixels are counted",
            path,
            width * height / 1e6,
            by,
            *image.size,
        )


def _to_srgb(image: Image.Image, path: Path) -> Callable[[Image.Image], Image.Image]:
    """Function that converts parts of an image from its own profile (Display P3, Adobe RGB, CMYK) to sRGB."""
    # A colour transform would lose the palette, and which colour is transparent.
    keyed = image.mode == "P" or (image.mode == "RGB" and image.has_transparency_data)
    plain = ("RGBA" if image.has_transparency_data else "RGB") if keyed else image.mode

    def in_plain_mode(part: Image.Image) -> Image.Image:
        return part.convert(plain) if keyed else part

    embedded = image.info.get("icc_profile")
    if not embedded or plain not in ("RGB", "RGBA", "L", "CMYK"):
        return in_plain_mode
    # Gray and CMYK become RGB in the transform. A profile that cannot be used is no reason to refuse a portrait.
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return in_plain_mode  # a transform to itself would only round
        mode = "RGBA" if plain == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), plain, mode)
    except (ImageCms.PyCMSError, OSError) as error:
        log.warning("warning: the colour profile in %s cannot be used (%s): its colours are taken as sRGB", path, error)
        return in_plain_mode

    def converted(part: Image.Image) -> Image.Image:
        result = ImageCms.applyTransform(in_plain_mode(part), transform)
        assert result is not None, "only a transform in place returns nothing"
        return result

    return converted


def _on_white(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: palettes become colours, 16 bits become 8, and transparent pixels white."""
    # Pillow's own conversion of 16 bits clips instead of scaling.
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    background = Image.new("RGBA", layered.size, (*_BACKGROUND, 255))
    return Image.alpha_composite(background, layered).convert("RGB")
