"""Which frames of a video were damaged before they were decoded: torn, grey or green blocks, wrong motion.

Three sources tell it:

- packets that cannot be decoded, and holes that the demuxer finds between packets (transport streams);
- frames that the decoder marks as corrupt: those of H.264 and MPEG do so whenever they conceal an error;
- a look at the image, for codecs whose decoders notice little (MPEG-4) or next to nothing (HEVC, VP8, VP9, AV1):
  `TornLook`.

From a damaged frame on, every frame up to the next undamaged key frame is damaged too, because it was predicted from
it; so are the B-frames right before it, which may be predicted from it as well.

FFmpeg's log is not used. It is one for the whole process and all its threads, and of damaged H.264 and MPEG-4 it named
no frame that the marks did not.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

_UNNOTICING = {"hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mpeg2video", "mpeg1video"}  # see `TornLook`
_SETTLING = 2  # packets after a hole within which a key frame makes it the border between two recordings
_MOST_HELD = 16  # B-frames in a row that are held back until the frame after them has been seen

_CELL = 32  # side of the parts of the image that are judged, pixels
_GRID = 8  # blocks of all codecs begin at multiples of it, pixels
_TEXTURE_SHARE = 0.5  # of the contrast within blocks that borders may have more than it without being torn
_SCALE = 32  # steps of a level in sums of integers
_TORN_CELLS = 3  # cells with sudden block borders that make a torn image
_TORN_LEVELS = 6.7  # grey levels by which they must stand out; see `TornLook`


class DamageFinder:
    """Marks the damaged frames of one stream, which are given to it in the order in which the decoder hands them out.

    Args:
        codec: FFmpeg's name of the codec.
        looked_at: Presentation time of each frame that was looked at, in ticks → whether it is torn; gets those that
            are looked at now. A frame is looked at once, however often the file is read.
    """

    def __init__(self, codec: str, looked_at: dict[int, bool]) -> None:
        self._look = TornLook() if codec in _UNNOTICING else None
        self._looked_at = looked_at
        self._is_damaged = False
        self._healing: set[int | None] | None = None  # key frames after a broken packet; None: every one heals
        self._hole = 0  # packets until a hole counts as damage
        self._held: list[tuple[VideoFrame, bool]] = []

    def packet(self, packet: Packet) -> None:
        """Take note of a packet before it is decoded."""
        if not packet.size:
            return
        # A hole in the file; between two recordings that were joined there is one, too, but it hurts no frame.
        if packet.is_keyframe:
            self._hole = 0
        elif self._hole:
            self._hole -= 1
            if not self._hole:
                self.broken()
        if packet.is_corrupt:
            self._hole = _SETTLING
        if packet.is_keyframe and self._healing is not None:
            self._healing.add(packet.pts)

    def broken(self) -> None:
        """Take note that the latest packet could not be decoded."""
        self._healing = set()
        self._damage()

    def frame(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, bool]]:
        """Take the next frame; gives frames back in the same order, and whether each is damaged."""
        heals = frame.key_frame and (self._healing is None or frame.pts is None or frame.pts in self._healing)
        if frame.is_corrupt or self._is_torn(frame):
            self._damage()
        elif heals:
            yield from self.rest()
            self._is_damaged, self._healing = False, None
        self._held.append((frame, self._is_damaged))
        if frame.pict_type != PictureType.B or len(self._held) > _MOST_HELD:
            yield from self.rest()

    def rest(self) -> Iterator[tuple[VideoFrame, bool]]:
        """The frames that are still held back."""
        held, self._held = self._held, []
        yield from held

    def _is_torn(self, frame: VideoFrame) -> bool:
        if self._look is None:
            return False
        if frame.pts is None:
            return self._look.is_torn(frame)
        if frame.pts not in self._looked_at:
            self._looked_at[frame.pts] = self._look.is_torn(frame)
        return self._looked_at[frame.pts]

    def _damage(self) -> None:
        self._is_damaged = True
        self._held = [(frame, True) for frame, _ in self._held]


class TornLook:
    """A look at the images of a video, one after the other, for torn ones: block borders that appear all at once.

    In each cell of 32 x 32 pixels, the contrast across the borders of the 8 x 8 grid is compared with the contrast
    halfway between them, and with what it was in the image before. The third highest increase of an image is its score:
    one border of an object that comes to lie on the grid does not make it, and neither do cuts, flashes and pans.

    Over 24 real clips and 34 of them encoded anew, down to some 60 kbit/s, the highest score of an undamaged image is
    5.4 levels; `_TORN_LEVELS` is a quarter above.
    """

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._borders: _BlockBorders | None = None

    def is_torn(self, frame: VideoFrame) -> bool:
        """Whether the next image is torn; the first one never is."""
        luma = _luma(frame)
        if luma is None or not luma.size:
            return False
        if self._borders is None or self._borders.shape != luma.shape:
            self._borders = _BlockBorders(luma.shape)
        now, before = self._borders.blockiness(luma), self._before
        self._before = now
        if before is None or before.shape != now.shape or now.size < _TORN_CELLS:
            return False
        sudden = np.minimum(now, now - before).ravel()
        return bool(np.partition(sudden, -_TORN_CELLS)[-_TORN_CELLS] > _TORN_LEVELS)


def _luma(frame: VideoFrame) -> np.ndarray | None:
    """Brightness of a frame as uint8 `[H, W]`, whole cells only; None for a frame that has no plane of it."""
    name, bits = frame.format.name, frame.format.components[0].bits
    if not name.startswith(("yuv", "nv12", "p010", "gray")) or (not frame.format.is_planar and "gray" not in name):
        return None
    plane = frame.planes[0]
    height, width = frame.height // _CELL * _CELL, frame.width // _CELL * _CELL
    if bits == 8:
        return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
    values = np.frombuffer(memoryview(plane), np.uint16).reshape(-1, plane.line_size // 2)[:height, :width]
    return (values >> (bits - 8)).astype(np.uint8)


class _BlockBorders:
    """Measure of block borders in images of one size.

    It keeps the memory that it works in: new memory for each image, first touched there, would cost half as much again.

    Args:
        shape: Height and width of the images, multiples of `_CELL`.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        height, width = shape
        self._turned = np.empty((width, height), np.uint8)  # the image on its side
        self._upright_rows, self._turned_rows = (
            np.zeros((3, rows // _GRID, columns), np.int16) for rows, columns in (shape, shape[::-1])
        )

    def blockiness(self, luma: np.ndarray) -> np.ndarray:
        """How much borders stand out in each cell of an image, levels: uint8 `[H, W]` → float `[H / 32, W / 32]`."""
        cv2.transpose(luma, self._turned)
        return (_across_rows(luma, self._upright_rows) + _across_rows(self._turned, self._turned_rows).T) / 2


def _across_rows(luma: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """The same for borders between rows alone; memory: int16 `[3, H / 8, W]`."""
    # Rows around the middle of a block, and around the border between two blocks, each [H / 8, W].
    a, b, c, d, e, f, g, h = (luma[row::_GRID] for row in range(_GRID))
    middle, border, other = memory
    _steps(c, d, e, f, middle, other)
    _steps(g[:-1], h[:-1], a[1:], b[1:], border[1:], other[1:])  # the image's own border, the first row, is none
    # Mean over each cell: 4 rows of blocks, but the uppermost cells have 3 borders.
    size = luma.shape[1] // _CELL, luma.shape[0] // _CELL
    inside, across = (cv2.resize(s, size, interpolation=cv2.INTER_AREA) / np.float32(_SCALE) for s in (middle, border))
    across[0] *= 4 / 3
    return across - (1 + _TEXTURE_SHARE) * inside


def _steps(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, steps: np.ndarray, other: np.ndarray) -> None:
    """Steps from rows `b` to `c` beyond the slope of their surroundings `a .. d`, 1 / 32 levels, into `steps`.

    All are `[N, W]`, `steps` and `other` int16; `other` is memory to work in.
    """
    cv2.subtract(c, b, steps, dtype=cv2.CV_16S)
    cv2.subtract(a, d, other, dtype=cv2.CV_16S)
    steps *= 3
    steps += other
    np.abs(steps, out=steps)  # at most 4 x 255
    steps *= _SCALE // 2
