"""A folder of numbered images as a source of frames, e.g. the frame release of VFHQ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import VideoInfo

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")  # names may hold other numbers first, as `clip2_00000017.png`


class ImageFrame:
    """One image of the folder; it is read when its pixels are asked for."""

    def __init__(self, file: Path, time_s: float, end_s: float, info: VideoInfo) -> None:
        self._file = file
        self._info = info
        self.time_s = time_s
        self.end_s = end_s

    @property
    def image(self) -> np.ndarray:
        """Whole image, RGB uint8 `[height, width, 3]`; transparency is dropped."""
        image = _read(self._file)
        # The size is that of the first image: crop and boxes hold for one frame size only.
        wanted = (self._info.height, self._info.width)
        if image.shape[:2] != wanted:
            raise ValueError(
                f"{self._file} is {image.shape[1]}x{image.shape[0]}, the images before are {wanted[1]}x{wanted[0]}"
            )
        return image

    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Part of `image` with corners x0, y0 and x1, y1 (exclusive), RGB uint8 `[y1 - y0, x1 - x0, 3]`."""
        return self.image[y0:y1, x0:x1]

    def reduced(self, width: int, height: int) -> np.ndarray:
        """The image reduced to `width` x `height`, RGB uint8 `[height, width, 3]`."""
        return cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)


class FrameFolder:
    """A folder of images, in the order of the last number in their names; a missing number is a gap in time."""

    broken_packets = 0
    """Always 0: an image that cannot be read is an error."""

    def __init__(self, folder: Path, fps: float) -> None:
        """List the folder and read its first image.

        Args:
            folder: Folder with the images, e.g. `00000000.png`.
            fps: Frame rate at which the images were taken.

        Raises:
            ValueError: Not a folder, no numbered image in it, two with one number, the first cannot be read, or `fps`
                is not positive.
        """
        if fps <= 0:
            raise ValueError(f"{folder}: the frame rate is {fps}, must be positive")
        if not folder.is_dir():
            raise UnreadableMediaError("not_media", f"{folder} is not a folder of frames")
        # Number → file. Two files with one number (frame_1.png, frame_01.png) would make the order a matter of chance.
        self._numbered: dict[int, Path] = {}
        for file in sorted(folder.iterdir()):
            match = _LAST_NUMBER.search(file.stem)
            if file.suffix.lower() in _SUFFIXES and match:
                other = self._numbered.setdefault(int(match[1]), file)
                if other is not file:
                    raise ValueError(f"{folder}: {other.name} and {file.name} have the same number")
        if not self._numbered:
            raise UnreadableMediaError("no_video", f"{folder} has no numbered images")
        # Described like a video; the numbers need not begin at 0. Width and height come from the first image.
        self._fps = fps
        self._first = min(self._numbered)
        height, width = _read(self._numbered[self._first]).shape[:2]
        self.info = VideoInfo(
            index=0,
            codec=self._numbered[self._first].suffix.lower().lstrip("."),
            pixel_format="rgb24",
            coded_width=width,
            coded_height=height,
            width=width,
            height=height,
            rotation=0,
            sample_aspect_ratio=Fraction(1),
            fps=fps,
            start_s=0.0,
            end_s=(max(self._numbered) + 1 - self._first) / fps,
            tick_s=1e-6,
        )

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def frames(self, start_s: float = 0.0) -> Iterator[ImageFrame]:
        """Frames from the one that is shown at `start_s` (seconds) on; the first image has time 0."""
        numbers = sorted(self._numbered)
        times = [(number - self._first) / self._fps for number in numbers]
        # Half a microsecond of tolerance, for start times that were rounded.
        begin = max((i for i, time_s in enumerate(times) if time_s <= start_s + 5e-7), default=0)
        for number, time_s in zip(numbers[begin:], times[begin:], strict=True):
            yield ImageFrame(self._numbered[number], time_s, time_s + 1 / self._fps, self.info)


def _read(file: Path) -> np.ndarray:
    """An image file as RGB uint8 `[H, W, 3]`; read through Python, because OpenCV cannot open every name."""
    try:
        data = np.frombuffer(file.read_bytes(), np.uint8)
    except OSError as error:
        raise UnreadableMediaError("no_permission", f"{file} cannot be read: {error.strerror}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if image is None:
        raise UnreadableMediaError("undecodable", f"{file} is not an image that can be read")
    return image
