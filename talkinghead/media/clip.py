"""Decodes the project's own clips (H.264 in MP4, 25 frames per second, closed groups) from memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import BinaryIO, cast

import av
import av.container
import numpy as np
from av.video.stream import VideoStream

from talkinghead.media.clip_pixels import ClipConverter
from talkinghead.media.container import as_stream, open_media
from talkinghead.media.probe import video_stream
from talkinghead.timebase import FPS


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
    """`count` frames from `first` on, each `stride` after the other: RGB uint8 `[count, H, W, 3]`.

    The same pixels as `decode_clip` gives. Only the packets from the key frame before `first` on are read and decoded;
    frames that are passed over are not converted.

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
        tick = cast(Fraction, stream.time_base)
        if first:
            container.seek(round(Fraction(first, FPS) / tick), stream=stream)
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
