"""The video that is dubbed: its frames at 25 fps, forwards, or to and fro for as long as the speech lasts.

Frames are decoded as they are asked for. Backwards, a stretch at a time is decoded forwards and handed out in reverse,
so the memory does not grow with the length.

Convention: frame k is what a player shows at k / 25 s. Where the video stream itself begins later, its first frame is
shown until then, so that the sound of the file fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from infer.faces import turned
from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.source_frame import SourceFrame
from talkinghead.media.video_source import VideoSource
from talkinghead.timebase import FPS, frame_time

_BACKWARDS_BYTES = 256 << 20
"""Most bytes of frames that are held to hand them out in reverse."""


class Footage:
    """An open video. Use it as a context manager; one sequence of frames at a time."""

    def __init__(self, path: Path, *, degrees: int = 0) -> None:
        """Open the video.

        Args:
            path: Video file.
            degrees: Turn in degrees clockwise that puts its face upright: 0, 90, 180 or 270.

        Raises:
            ValueError: The file is no video, or cannot be decoded; the message names it.
        """
        self.path = path
        self.degrees = degrees
        self._source = VideoSource(path)
        self._late = round(self._source.info.start_s * FPS)

    def __enter__(self) -> Footage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels, turned."""
        info = self._source.info
        return (info.width, info.height) if self.degrees % 180 == 0 else (info.height, info.width)

    @property
    def seconds(self) -> float | None:
        """Length that the file announces; an estimate."""
        return self._source.info.end_s

    def notes(self) -> list[str]:
        """What is unusual about the clock of the file, a line each."""
        return list(self._source.timeline.notes())

    def shown(self, first: int = 0, count: int | None = None) -> Iterator[SourceFrame]:
        """Decoded frames from `first` on, not turned, at most `count`; None: to the end."""
        # The stream's own frame at that place, and how often the stream's first frame comes before its second.
        place = max(0, first - self._late)
        begin_s = self._source.info.start_s + frame_time(place)
        frames = constant_rate(self._source.frames(begin_s), begin_s, None, self._source.info.tick_s)
        waits = max(0, self._late - first)
        held = next(frames, None)
        if held is None:
            return iter(())
        return itertools.islice(itertools.chain(itertools.repeat(held, waits + 1), frames), count)

    def upright(self, frame: SourceFrame, shrink: float = 1.0) -> np.ndarray:
        """The image of a frame of `shown`, upright, RGB uint8; smaller by a factor, and then less exact."""
        info = self._source.info
        size = round(info.width * shrink), round(info.height * shrink)
        return turned(frame.image if shrink == 1 else frame.reduced(*size), self.degrees)

    def images(self, first: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        """Frames from `first` on, RGB uint8 `[H, W, 3]`, upright, at most `count`; None: to the end."""
        return (self.upright(frame) for frame in self.shown(first, count))

    def image(self, number: int) -> np.ndarray:
        """One frame.

        Raises:
            ValueError: The video is shorter.
        """
        for image in self.images(number, 1):
            return image
        raise ValueError(f"{self.path} has no frame {number}")

    def to_and_fro(self, length: int, count: int) -> Iterator[np.ndarray]:
        """`count` frames, played to and fro over the first `length` frames, in the order of `resampling.tile`.

        Frames are RGB uint8 `[H, W, 3]`, upright. Up to `length` they are those of `images`.
        """
        while count > 0:
            yield from self.images(0, min(count, length))
            count -= length
            # Backwards without the two ends, so that no frame comes twice; a video of one frame stands still.
            back = min(count, length - 2)
            if back > 0:
                yield from self._backwards(length - 1, back)
                count -= back

    def _backwards(self, end: int, count: int) -> Iterator[np.ndarray]:
        """The `count` frames before frame `end`, the last one first."""
        width, height = self.size
        stretch = max(8, _BACKWARDS_BYTES // (3 * width * height))
        while count > 0:
            some = min(count, stretch)
            images = list(self.images(end - some, some))
            while images:
                yield images.pop()
            end, count = end - some, count - some
