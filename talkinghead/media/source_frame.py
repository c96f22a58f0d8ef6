"""One decoded frame of a video: upright and with square pixels, converted when it is asked for."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from talkinghead.media.media_file import VideoInfo
from talkinghead.media.pixels import ACCURATE, FAST, PixelConverter


class SourceFrame:
    """One decoded frame; its pixels are converted when they are asked for."""

    def __init__(
        self,
        frame: VideoFrame,
        info: VideoInfo,
        converter: PixelConverter,
        time_s: float,
        end_s: float,
        *,
        segment: int = 0,
        damaged: bool = False,
    ) -> None:
        self._frame = frame
        self._info = info
        self._converter = converter
        self.time_s = time_s
        """Presentation time, seconds from the start of the file's timeline."""
        self.end_s = end_s
        """End in seconds if nothing follows."""
        self.segment = segment
        """Number of the part of the file between two jumps of its clock, see `talkinghead/media/timeline.py`."""
        self.damaged = damaged
        """Whether its image, or one that it was predicted from, was damaged before it was decoded."""

    @property
    def image(self) -> np.ndarray:
        """RGB uint8 `[height, width, 3]`, upright, square pixels."""
        return self._upright(self._info.width, self._info.height, ACCURATE)

    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """A part of `image`, RGB uint8 `[y1 - y0, x1 - x0, 3]`, at a fraction of the cost.

        The box is `x0 .. x1 - 1`, `y0 .. y1 - 1` in pixels of `image`.
        """
        info, frame = self._info, self._frame
        assert 0 <= x0 < x1 <= info.width and 0 <= y0 < y1 <= info.height, f"{x0, y0, x1, y1} leaves the frame"
        whole = (info.coded_width, info.coded_height) == (frame.width, frame.height)
        if not whole or info.sample_aspect_ratio != 1:
            return self.image[y0:y1, x0:x1]  # scaled: parts have no whole pixels
        box = info.orientation.decoded_box(x0, y0, x1, y1, frame.width, frame.height)
        return info.orientation.upright(self._converter.rgb_part(frame, *box))

    def reduced(self, width: int, height: int) -> np.ndarray:
        """A smaller image for detectors, RGB uint8 `[height, width, 3]`, upright; converted faster and less exactly."""
        return self._upright(width, height, FAST)

    def _upright(self, width: int, height: int, quality: Interpolation) -> np.ndarray:
        """RGB uint8 `[height, width, 3]`: scaled in the conversion, then turned and mirrored."""
        orientation = self._info.orientation
        if orientation.swaps_sides:
            width, height = height, width
        return orientation.upright(self._converter.rgb(self._frame, width, height, quality))
