"""The region of interest: the turned rectangle of the image that the landmark network gets.

The rules are those of MediaPipe's `face_detector_graph.cc` and `face_landmarks_detector_graph.cc`: one and a half
times the face's box, turned so that the line between the eyes is level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from talkinghead.face.detector import LEFT_EYE, RIGHT_EYE, Detection

_SCALE = 1.5
_RIGHT_EYE_CORNER, _LEFT_EYE_CORNER = 33, 263  # landmarks of the face mesh; sides are the subject's


@dataclass(frozen=True)
class Region:
    """A turned rectangle in pixels of the frame (edges at whole numbers, x right, y down)."""

    center_x: float
    center_y: float
    width: float
    height: float
    rotation: float
    """Angle in radians; positive turns x towards y (clockwise as seen)."""

    @classmethod
    def of_detection(cls, detection: Detection, width: int, height: int) -> Region:
        """Region around a detected face in a frame of `width` x `height` pixels."""
        x0, y0, x1, y1 = detection.box
        eyes = detection.keypoints[[RIGHT_EYE, LEFT_EYE]] * (width, height)
        return cls(
            (x0 + x1) / 2 * width,
            (y0 + y1) / 2 * height,
            (x1 - x0) * width * _SCALE,
            (y1 - y0) * height * _SCALE,
            _angle(eyes),
        )

    @classmethod
    def of_landmarks(cls, points: np.ndarray, width: int, height: int) -> Region:
        """Region for the next frame, around the landmarks `[N, 3]` of this one, which are normalised by the image.

        It is square; `width` and `height` are the frame's, in pixels.
        """
        corners = points[:, :2] * (width, height)
        low, high = corners.min(axis=0), corners.max(axis=0)
        center = (low + high) / 2
        side = float((high - low).max()) * _SCALE
        eyes = corners[[_RIGHT_EYE_CORNER, _LEFT_EYE_CORNER]]
        return cls(float(center[0]), float(center[1]), side, side, _angle(eyes))

    def contains(self, x: float, y: float) -> bool:
        """Whether a point, in pixels of the frame, lies in the region."""
        # Coordinates along the sides, in units of their lengths: the axes are as long as the sides, hence the squares.
        along = np.array([x - self.center_x, y - self.center_y]) @ self._axes() / (self.width**2, self.height**2)
        return bool((np.abs(along) <= 0.5).all())

    def cut(self, frame: np.ndarray, size: int) -> np.ndarray:
        """The region of an image, upright, as `[size, size, 3]`; the image's border is repeated beyond it."""
        # The upright box around the region, so that only this part of a large frame is converted.
        height, width = frame.shape[:2]
        axes = self._axes()
        reach = np.abs(axes).sum(axis=1) / 2 + 2  # from the centre, with a margin for the interpolation
        x0, x1 = _within(self.center_x, reach[0], width)
        y0, y1 = _within(self.center_y, reach[1], height)
        # The affine map from output pixels to pixels of that part.
        to_part = np.empty((2, 3))
        to_part[:, :2] = axes / size  # frame pixels per output pixel
        to_part[:, 2] = (self.center_x - x0, self.center_y - y0) - axes.sum(axis=1) / 2
        # OpenCV turns four channels in half the time of three: with both conversions, a third is saved.
        part = cv2.cvtColor(frame[y0:y1, x0:x1], cv2.COLOR_RGB2RGBA)
        turned = cv2.warpAffine(
            part,
            to_part,
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return cv2.cvtColor(turned, cv2.COLOR_RGBA2RGB)

    def to_image(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Landmarks `[N, 3]`, normalised by the image (z by its width), from units of the region (0 .. 1, z like x).

        MediaPipe takes z's scale from the region's top edge in *normalised* coordinates, so in an image that is not
        square the depth of a tilted head is off by up to a per cent or so. Both engines share this error.
        """
        # The region's axes as fractions of the image.
        axes = (self._axes() / [[width], [height]]).astype(np.float32)
        center = np.array([self.center_x / width, self.center_y / height], dtype=np.float32)
        placed = np.empty(points.shape, dtype=np.float32)
        placed[:, :2] = (points[:, :2] - 0.5) @ axes.T + center
        placed[:, 2] = points[:, 2] * math.hypot(*axes[:, 0])
        return placed

    def _axes(self) -> np.ndarray:
        """The region's width and height as vectors in pixels: columns of a `[2, 2]` matrix."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        return np.array([[cos * self.width, -sin * self.height], [sin * self.width, cos * self.height]])


def _angle(eyes: np.ndarray) -> float:
    """Rotation of the line from the (subject's) right eye to the left, `[2, 2]` pixels, within ±pi."""
    across, down = eyes[1] - eyes[0]
    return math.atan2(float(down), float(across))


def _within(center: float, reach: float, extent: int) -> tuple[int, int]:
    """First pixel and end (exclusive) of `center` ± `reach` within `extent` pixels; at least the border's pixel."""
    first = min(max(math.floor(center - reach), 0), extent - 1)
    return first, max(min(math.ceil(center + reach), extent), first + 1)
