"""Decodes the project's own clips (`encode.py`: H.264 in MP4, 25 frames per second, closed groups) from memory.

Their frames (yuv420p, BT.709, limited range) become RGB with OpenCV. Against swscale's careful path
(`pixels.ACCURATE`), measured on nine real clips: a sixth of its time; no colour is shifted by more than 0.02 levels;
pixels are 0.2 levels apart on average and 11 at most (at edges of saturated colour, where that one interpolates with
cubics). Landmarks at 512 px move by 0.10 px on average, without a common direction (0.01 px). That is noise of
rounding: swscale and the formula in floating point are 0.07 px apart, and one level in 2 % of the samples makes
0.05 px.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import BinaryIO, cast

import av
import av.container
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from talkinghead.media.media_file import as_stream, open_media, video_stream
from talkinghead.media.pixels import PixelConverter
from talkinghead.timebase import FPS

_STEPS = 1024  # OpenCV multiplies 8-bit pixels with matrices rounded to this


def decode_clip(mp4: bytes | BinaryIO) -> Iterator[np.ndarray]:
    """Every frame of a clip in order, RGB uint8 `[H, W, 3]`.

    Raises:
        ValueError: The clip cannot be opened.
        av.error.FFmpegError: A packet of it is damaged.
    """
    converter = ClipConverter()
    with _open(mp4) as (container, stream):
        for frame in container.decode(stream):
            yield converter.rgb(frame)


def decode_window(mp4: bytes | BinaryIO, first: int, count: int, stride: int = 1) -> np.ndarray:
    """Frames `first`, `first + stride`, … of a clip: RGB uint8 `[count, H, W, 3]`.

    The pixels are equal to those of `decode_clip`. Reading and decoding begin at the key frame before `first`; frames
    that are passed over are not converted.

    Args:
        mp4: The clip's file.
        first: Number of the first frame.
        count: How many frames.
        stride: Frames from one to the next.

    Raises:
        ValueError: The clip cannot be opened, or has fewer frames.
        av.error.FFmpegError: A packet of it is damaged.
    """
    if first < 0 or count < 1 or stride < 1:
        raise ValueError(f"a window of {count} frames from frame {first} on, each {stride} further, does not exist")
    last = first + (count - 1) * stride
    converter = ClipConverter()
    images: np.ndarray | None = None
    found = 0
    with _open(mp4) as (container, stream):
        # Go to the key frame at or before the first frame: groups are closed, so nothing earlier is needed.
        tick = cast(Fraction, stream.time_base)
        if first:
            container.seek(round(Fraction(first, FPS) / tick), stream=stream)
        # A frame's number follows from its time stamp: decoding began at an unknown key frame.
        for frame in container.decode(stream):
            index = round(cast(int, frame.pts) * tick * FPS)
            if index < first or (index - first) % stride:
                continue
            if images is None:
                images = np.empty((count, frame.height, frame.width, 3), np.uint8)
            converter.rgb(frame, out=images[(index - first) // stride])
            found += 1
            if found == count:
                return images
    raise ValueError(f"the clip has no frames {first} to {last}: only {found} of {count} were found")


@contextmanager
def _open(mp4: bytes | BinaryIO) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    with open_media(as_stream(mp4)) as container:
        yield container, video_stream(container, "clip")


def _bt709_to_rgb() -> np.ndarray:
    """Matrix `[3, 4]` (the last column: offsets) from limited-range Y'CbCr, 8 bit, to full-range RGB.

    Source: ITU-R BT.709-6, §3. The entries are rounded as OpenCV would round them anyway, and the offsets make up for
    that at middle grey: the error that is left is 0.04 levels at black and white, and a grey pixel stays grey.
    """
    red, blue = 0.2126, 0.0722
    green = 1 - red - blue
    luma, chroma = 255 / 219, 255 / 224  # limited range: luma 16 .. 235, chroma 16 .. 240
    exact = np.array(
        [
            [luma, 0, 2 * (1 - red) * chroma],
            [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
            [luma, 2 * (1 - blue) * chroma, 0],
        ]
    )
    # Offsets that make the rounded matrix exact at middle grey (luma 126).
    rounded = np.round(exact * _STEPS) / _STEPS
    black, grey = np.array([16, 128, 128]), np.array([126, 128, 128])
    return np.column_stack([rounded, exact @ (grey - black) - rounded @ grey])


_TO_RGB = _bt709_to_rgb()


class ClipConverter:
    """Converts frames of clips to RGB. The pixels depend on the frame alone; belongs to the thread that made it."""

    def __init__(self) -> None:
        self._other = PixelConverter()

    def rgb(self, frame: VideoFrame, out: np.ndarray | None = None) -> np.ndarray:
        """The frame as RGB uint8 `[H, W, 3]`, full range; written into `out` if it is given.

        A frame in another format than `encode.py` writes (a shard may come from elsewhere) is left to swscale.
        """
        if not _is_ours(frame):
            image = self._other.rgb(frame, frame.width, frame.height)
            if out is None:
                return image
            out[...] = image
            return out
        luma, blue, red = (_samples(plane) for plane in frame.planes)
        size = (frame.width, frame.height)
        return cv2.transform(cv2.merge((luma, _full_size(blue, size), _full_size(red, size))), _TO_RGB, dst=out)


def _is_ours(frame: VideoFrame) -> bool:
    """Whether a frame has the format that `encode.py` writes."""
    return (
        frame.format.name == "yuv420p"
        and frame.colorspace == Colorspace.ITU709
        and frame.color_range == ColorRange.MPEG
        and frame.width % 2 == frame.height % 2 == 0
    )


def _samples(plane: VideoPlane) -> np.ndarray:
    """The samples of a plane `[h, w]`, not copied."""
    # FFmpeg's rows may be longer than the image.
    return np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _full_size(chroma: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Chroma `[H/2, W/2]`, interpolated linearly to the luma's `size`, (W, H).

    Convention: chroma lies where H.264 puts it by default (ITU-T H.264, figure 6-1), as swscale does for encoding: in a
    row on the first of two luma samples, in a column in the middle between two.
    """
    # Along the rows: even columns are the samples, odd ones the mean of two neighbours.
    padded = cv2.copyMakeBorder(chroma, 1, 1, 0, 1, cv2.BORDER_REPLICATE)
    between = cv2.addWeighted(padded[:, :-1], 0.5, padded[:, 1:], 0.5, 0)
    rows = cv2.merge((padded[:, :-1], between)).reshape(len(padded), size[0])  # [H/2 + 2, W]
    # Down the columns: each luma row lies a quarter of the way from one chroma row to the next.
    full = np.empty((size[1], size[0]), np.uint8)
    # Not cv2.resize: it rounds halves up, which these weights make so often that reds and blues shift by 0.1 levels.
    cv2.addWeighted(rows[:-2], 0.25, rows[1:-1], 0.75, 0, dst=full[0::2])
    cv2.addWeighted(rows[1:-1], 0.75, rows[2:], 0.25, 0, dst=full[1::2])
    return full
