"""How much a media file may ask for. A few kilobytes can announce terabytes, so what a header says is checked first.

The limits lie above everything that talking heads are filmed, photographed or recorded in. What no header tells (a gap
of hours in the time stamps, a codec that packs hours of silence into nothing) is counted while it is decoded.
"""

from __future__ import annotations

from talkinghead.media.errors import UnreadableMediaError

FRAME_PIXELS = 8192 * 4320
"""Most pixels of a video's frame: 8K of cinemas. A decoder holds up to 16 frames besides the one that it hands out."""
IMAGE_PIXELS = 8192 * 6144
"""Most pixels of an image: 50 megapixels."""
JPEG_PIXELS = 16384 * 16384
"""Most pixels of a JPEG that is decoded at a half, a quarter or an eighth of its size, which is how one of more than
`IMAGE_PIXELS` is read: 268 megapixels, more than any telephone's sensor has."""
PROGRESSIVE_PIXELS = 12288 * 10240
"""The same for a progressive JPEG, whose decoder holds the coefficients of the whole image, up to 6 bytes for a pixel:
126 megapixels."""
TO_JPEG = "make it smaller first, or save it as a JPEG, of which larger ones are read"
"""What to do about an image of another format that is too large."""
IMAGE_BYTES = 256 << 20
"""Most bytes of an image's file."""

SOUND_RATES = (1000, 192_000)
"""Lowest and highest sampling rate, Hz."""
SOUND_CHANNELS = 64
"""Most channels of sound."""
SOUND_SECONDS = 2 * 3600.0
"""Longest sound that is read whole where the caller names no length, seconds: 460 MB at 16 kHz."""
BLOCK_SAMPLES = 1 << 22
"""Most samples that a decoder may hand out at once."""

DECODER_OPTIONS = {"max_pixels": str(FRAME_PIXELS), "max_samples": str(BLOCK_SAMPLES)}
"""The same limits for FFmpeg's decoders: a frame in the middle of a file may be larger than the header says."""


def check_frame_size(name: str, width: int, height: int) -> None:
    """Refuse a video whose frames are too large.

    Args:
        name: Name of the file, for the message.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.

    Raises:
        UnreadableMediaError: They have more than `FRAME_PIXELS`.
    """
    _check_pixels(f"a frame of {name}", width, height, FRAME_PIXELS)


def check_image_pixels(name: str, width: int, height: int) -> None:
    """Refuse an image that is too large; arguments as for `check_frame_size`.

    Raises:
        UnreadableMediaError: It has more than `IMAGE_PIXELS`.
    """
    _check_pixels(f"the image {name}", width, height, IMAGE_PIXELS, TO_JPEG)


def check_jpeg_pixels(name: str, width: int, height: int, *, progressive: bool) -> None:
    """Refuse a JPEG that is too large even for decoding at a part of its size.

    Args:
        name: Name of the file, for the message.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        progressive: Whether it is stored in several passes over the image.

    Raises:
        UnreadableMediaError: It has more than `JPEG_PIXELS`, or than `PROGRESSIVE_PIXELS`.
    """
    if progressive:
        remedy = "save it as a baseline JPEG (not progressive), or make it smaller first"
        _check_pixels(f"the progressive JPEG {name}", width, height, PROGRESSIVE_PIXELS, remedy)
    else:
        _check_pixels(f"the image {name}", width, height, JPEG_PIXELS)


def _check_pixels(what: str, width: int, height: int, most: int, remedy: str = "make it smaller first") -> None:
    if width * height > most:
        raise UnreadableMediaError(
            "too_large",
            f"{what} is too large: {width}x{height} pixels, and {most / 1e6:.0f} million in all are the most that is"
            f" read; {remedy}",
        )


def check_sound(name: str, rate: int, channels: int) -> None:
    """Refuse sound at a rate, or with a number of channels, that no recording has.

    Args:
        name: Name of the file, for the message.
        rate: Sampling rate, Hz.
        channels: Number of channels.

    Raises:
        UnreadableMediaError: One of them is out of range.
    """
    lowest, highest = SOUND_RATES
    if not (lowest <= rate <= highest and 1 <= channels <= SOUND_CHANNELS):
        raise UnreadableMediaError(
            "too_large",
            f"{name} has sound at {rate} Hz with {channels} channels, and {lowest} to {highest} Hz with 1 to"
            f" {SOUND_CHANNELS} channels can be read: it is damaged, or has to be converted first",
        )
