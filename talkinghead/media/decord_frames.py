"""Decodes the project's own clips with decord, the other engine next to PyAV (`talkinghead/media/clip.py`).

The same frames come out, by the same numbers, but not the same pixels. decord hands out RGB only, converted by
swscale's plain path: exactly what PyAV gives with `reformat(format="rgb24")`. That path rounds down and takes the
nearest chroma sample. Against `clip.py`, measured on real clips, every colour is 0.9 to 1.6 levels darker, pixels are
1.3 levels apart on average, and 32 at most. What is trained through one engine is best used through the same one.

What decord (3.4) does that its callers have to know:

- From the first frame that is asked for, its thread decodes on to the end of the file, and keeps every image until it
  is taken or the reader is freed: memory may grow with the clip, 0.8 MB a frame at 512 px. So readers are short-lived.
- It reads a whole file into memory, where PyAV reads the window's bytes alone.
- A process that is forked while a reader is open must not free its copy of it: it would wait for a thread that it does
  not have.
- It takes the padding of rows for channels where the padded row is a multiple of the width (16, 24, 32, 48, 96 and 144
  pixels): such clips are refused. At all other widths up to 1920 that were tried, pixels are right.
- It conceals damaged images without a mark, and makes up for missing ones with copies unless it is told not to.
- It opens whatever FFmpeg can, playlists of other files too, and has no limit for the size of a frame. So only MP4 is
  given to it here; a data set of a stranger is better read with PyAV.
- Its library makes its FFmpeg visible to all that is loaded later: loaded first, PyAV and OpenCV would compute with
  decord's FFmpeg instead of their own.

This module loads decord, so import it only where decord was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Before decord: see above. Their functions are bound while they load.
import av as _av  # noqa: F401
import cv2 as _cv2  # noqa: F401
import decord
import numpy as np
from decord import DECORDError, DECORDLimitReachedError

from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import MediaFile, as_stream, name_of
from talkinghead.timebase import FPS

_THREADS = 1  # decord would take every core for itself
_NO_COPIES = 1e-9  # share of missing frames that decord may replace by copies; 0 and less mean any

decord.logging.set_level(decord.logging.QUIET)  # what is wrong with a file is told by an error


class DecordReader:
    """An open video; a context manager. Frames are numbered in presentation order.

    Every failure of decord becomes one line that names the file.
    """

    def __init__(self, file: MediaFile) -> None:
        """Open the file and read its index.

        Raises:
            ValueError: decord cannot open it, or it has no frames.
        """
        self._name = name_of(file)
        self._reader: Any = None
        with self._told("cannot be opened"):
            self._reader = decord.VideoReader(
                f"file:{file.absolute()}" if isinstance(file, Path) else file,  # no option, protocol or pattern
                num_threads=_THREADS,
                fault_tol=_NO_COPIES,  # pyright: ignore[reportArgumentType]
            )

    def __enter__(self) -> DecordReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the reader, its thread and its images."""
        self._reader = None

    def __len__(self) -> int:
        return len(self._reader)

    def times(self) -> np.ndarray:
        """Presentation time of each frame in seconds, float32 `[F]`."""
        return self._reader.get_frame_timestamp(range(len(self)))[:, 0]

    def frames(self) -> Iterator[np.ndarray]:
        """All frames in order, RGB uint8 `[H, W, 3]`.

        Raises:
            ValueError: One of them is missing or damaged.
        """
        for _ in range(len(self)):  # by count: its end is a StopIteration, which no generator may raise
            with self._told("cannot be decoded"):
                image = self._reader.next().asnumpy()
            yield self._checked(image)

    def frame(self, number: int) -> np.ndarray:
        """One frame, RGB uint8 `[H, W, 3]`; cheap for the one after the latest.

        Raises:
            ValueError: It is missing or damaged.
        """
        with self._told("cannot be decoded"):
            image = self._reader[number].asnumpy()
        return self._checked(image)

    def _checked(self, image: np.ndarray) -> np.ndarray:
        if image.shape[-1] != 3:
            raise UnreadableMediaError(
                "undecodable", f"{self._name} has frames of a width that decord reads wrongly: use pyav instead"
            )
        return image

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn decord's errors, which are pages from inside its library, into one line."""
        try:
            yield
        except (DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError):
            # A traceback may live long, and would keep the reader: freed here.
            self.close()
            cause = "it is damaged, cut short, or in a format that decord lacks"
            damaged = UnreadableMediaError("undecodable", f"{self._name} {what} by decord: {cause}")
        else:
            return
        raise damaged


def decode_clip(mp4: bytes | BinaryIO) -> Iterator[np.ndarray]:
    """Every frame of a clip in order, RGB uint8 `[H, W, 3]`.

    Raises:
        ValueError: The clip cannot be opened, is none of this project's, or is damaged.
    """
    with _clip(mp4) as reader:
        yield from reader.frames()


def decode_window(mp4: bytes | BinaryIO, first: int, count: int, stride: int = 1) -> np.ndarray:
    """Frames `first`, `first + stride`, … of a clip: RGB uint8 `[count, H, W, 3]`.

    The pixels are equal to those of `decode_clip` of this module.

    Args:
        mp4: The clip's file.
        first: Number of the first frame.
        count: How many frames.
        stride: Frames from one to the next.

    Raises:
        ValueError: The clip cannot be opened, is none of this project's, has fewer frames, or is damaged.
    """
    if first < 0 or count < 1 or stride < 1:
        raise ValueError(f"a window of {count} frames from frame {first} on, each {stride} further, does not exist")
    last = first + (count - 1) * stride
    with _clip(mp4) as reader:
        if last >= len(reader):
            raise ValueError(f"the clip has no frames {first} to {last}: it has {len(reader)}")
        images: np.ndarray | None = None
        for place, number in enumerate(range(first, last + 1, stride)):
            image = reader.frame(number)
            if images is None:
                images = np.empty((count, *image.shape), np.uint8)
            images[place] = image
    assert images is not None
    return images


@contextmanager
def _clip(mp4: bytes | BinaryIO) -> Iterator[DecordReader]:
    """A clip whose frames lie where their numbers say."""
    # Nothing but MP4: by its first box, FFmpeg takes the file for that and for nothing else.
    stream = as_stream(mp4)
    if stream.read(8)[4:] != b"ftyp":
        raise UnreadableMediaError("not_media", "clip is not a video that can be opened: it is no MP4 file")
    stream.seek(0)
    with DecordReader(stream) as reader:
        # decord numbers whatever frames there are; PyAV's path goes by time.
        if not np.array_equal(np.rint(reader.times() * FPS), np.arange(len(reader))):
            raise UnreadableMediaError(
                "undecodable",
                f"clip has no frame in each 1/{FPS} s, where decord needs to find them: it is damaged, or none of this"
                " project (the decoder pyav reads it)",
            )
        yield reader
