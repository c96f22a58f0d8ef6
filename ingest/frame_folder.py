"""A folder of numbered images as a source of frames, e.g. the frame release of VFHQ.

The images may be a stranger's: their headers are looked at before they are decoded, only the formats that are meant are
decoded, and the numbers in the names may not make a clip of days.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from ingest.source_files import FOLDER_FILES, is_inside, leads_out
from talkinghead.files.foreign import read_limited
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.image_file import header_size
from talkinghead.media.limits import IMAGE_BYTES
from talkinghead.media.media_file import VideoInfo

LONGEST_S = 2 * 3600.0
"""Longest time from the first image to the last, seconds."""

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_LAST_NUMBER = re.compile(r"([0-9]+)(?!.*[0-9])")  # names may hold other numbers first, as `clip2_00000017.png`


class ImageFrame:
    """One image of the folder; it is read when its pixels are asked for."""

    segment = 0
    damaged = False

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
    timeline = None
    """A folder has no time stamps that could be damaged."""
    audio = None
    """A folder has no sound."""

    def __init__(self, folder: Path, fps: float, *, inside: Path | None = None) -> None:
        """List the folder and read its first image.

        Args:
            folder: Folder with the images, e.g. `00000000.png`.
            fps: Frame rate at which the images were taken.
            inside: Folder that images which are links may not lead out of; None: they may lead anywhere.

        Raises:
            ValueError: Not a folder, no numbered image in it, two with one number, an image that leads out of `inside`,
                far too many of them or numbers far apart, the first cannot be read, or `fps` is not positive.
        """
        if fps <= 0:
            raise ValueError(f"{folder}: the frame rate is {fps}, must be positive")
        if not folder.is_dir():
            raise UnreadableMediaError("not_media", f"{folder} is not a folder of frames")
        # Number → file. Two files with one number (frame_1.png, frame_01.png) would make the order a matter of chance.
        self._numbered: dict[int, Path] = {}
        files = sorted(itertools.islice(folder.iterdir(), FOLDER_FILES + 1))
        if len(files) > FOLDER_FILES:
            raise UnreadableMediaError("too_large", f"{folder} has more than {FOLDER_FILES:,} files")
        for file in files:
            match = _LAST_NUMBER.search(file.stem)
            if file.suffix.lower() in _SUFFIXES and match:
                other = self._numbered.setdefault(int(match[1]), file)
                if other is not file:
                    raise ValueError(f"{folder}: {other.name} and {file.name} have the same number")
                if inside is not None and file.is_symlink() and not is_inside(inside, file):
                    raise UnreadableMediaError("no_permission", f"{file} {leads_out(file.resolve())}")
        if not self._numbered:
            raise UnreadableMediaError("no_video", f"{folder} has no numbered images")
        # Described like a video; the numbers need not begin at 0. Width and height come from the first image.
        self._fps = fps
        self._first = min(self._numbered)
        # The time between two images is filled with the first of them.
        if (last := max(self._numbered)) - self._first > LONGEST_S * fps:
            raise UnreadableMediaError(
                "too_long",
                f"{folder}: from image {self._first} to image {last} it is more than {LONGEST_S:g} s at {fps:g} fps",
            )
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
            end_s=(last + 1 - self._first) / fps,
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
        data = read_limited(file, IMAGE_BYTES, "image")
    except OSError as error:
        raise UnreadableMediaError("no_permission", f"{file} cannot be read: {error.strerror}") from error
    header_size(data, str(file))  # refuses other formats and too large images, before OpenCV decodes one
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UnreadableMediaError("undecodable", f"{file} is not an image that can be read")
    return image
