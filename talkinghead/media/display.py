"""How decoded frames have to be turned and mirrored to be shown upright: a file's display matrix as one of eight cases.

Cameras and phones keep the sensor's pixels and write a matrix next to them. FFmpeg gives it as nine fixed-point
numbers (16.16; the third column 2.30), row by row (libavutil/display.h; ISO/IEC 14496-12, `tkhd`)::

        a b u
        c d v         shown x = a · x + c · y,  shown y = b · x + d · y
        x y w

Only `a b c d` matter here; where the image is placed and how large it is shown do not. A matrix that is no multiple
of 90° is taken as the nearest of the eight cases: a face that leans is no fault, and turning it would only blur it.
Different scales for width and height come as sample aspect ratio from FFmpeg's demuxers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame

_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
_LEFT_RIGHT = 1  # OpenCV's code of a flip that exchanges left and right


@dataclass(frozen=True)
class Orientation:
    """What makes a decoded frame upright: first a turn clockwise, then, where `mirrored`, left and right exchanged."""

    degrees: int = 0
    """0, 90, 180 or 270, clockwise."""
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether the upright frame is as wide as the decoded one is high."""
        return self.degrees in (90, 270)

    def upright(self, image: np.ndarray) -> np.ndarray:
        """A decoded image `[H, W, 3]` made upright, `[H, W, 3]` or `[W, H, 3]`; the same array if it already is."""
        turn = _TURNS.get(self.degrees)
        turned = image if turn is None else cv2.rotate(image, turn)
        return cv2.flip(turned, _LEFT_RIGHT) if self.mirrored else turned

    def decoded_box(self, x0: int, y0: int, x1: int, y1: int, width: int, height: int) -> tuple[int, int, int, int]:
        """The box of the decoded frame that shows a box of the upright frame.

        Args:
            x0: Left edge in the upright frame, pixels.
            y0: Upper edge.
            x1: Right edge, exclusive.
            y1: Lower edge, exclusive.
            width: Width of the decoded frame, pixels.
            height: Height of the decoded frame.

        Returns:
            `x0, y0, x1, y1` in the decoded frame.
        """
        if self.mirrored:
            upright_width = height if self.swaps_sides else width
            x0, x1 = upright_width - x1, upright_width - x0
        if self.degrees == 90:
            return y0, height - x1, y1, height - x0
        if self.degrees == 180:
            return width - x1, height - y1, width - x0, height - y0
        if self.degrees == 270:
            return width - y1, x0, width - y0, x1
        return x0, y0, x1, y1

    def matrix(self) -> np.ndarray:
        """The 2 x 2 matrix `[[a, b], [c, d]]` of a file whose frames need this to be upright (y points down)."""
        turn = {
            0: ((1, 0), (0, 1)),
            90: ((0, 1), (-1, 0)),
            180: ((-1, 0), (0, -1)),
            270: ((0, -1), (1, 0)),
        }[self.degrees]
        mirror = np.array([[-1, 0], [0, 1]]) if self.mirrored else np.eye(2, dtype=int)
        return np.array(turn) @ mirror


UPRIGHT = Orientation()
ORIENTATIONS = tuple(Orientation(degrees, mirrored) for mirrored in (False, True) for degrees in (0, 90, 180, 270))
"""All eight; the upright one first."""


def orientation_of(frame: VideoFrame) -> Orientation:
    """What makes a decoded frame upright.

    A frame can carry two matrices, the container's and one that the encoder put into the image (a message in H.264
    or HEVC). The container's wins, as in FFmpeg and players: whoever turned the video last wrote it there.
    """
    for data in cast(Iterable[SideData], frame.side_data):  # FFmpeg puts the container's first
        if data.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
            return nearest_orientation(np.array([[a, b], [c, d]], dtype=float))
    return UPRIGHT


def nearest_orientation(matrix: np.ndarray) -> Orientation:
    """The case of eight whose matrix is nearest to `[[a, b], [c, d]]`, in whatever scale; upright for one of zeros."""
    # For matrices of equal length the nearest is the one with the largest inner product; the first wins a tie.
    return max(ORIENTATIONS, key=lambda orientation: float((orientation.matrix() * matrix).sum()))
