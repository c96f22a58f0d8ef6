"""Per-frame quality measures of a clip.

Sharpness and brightness need the pixels of the face, but an engine gives the face's place only at the end of the clip,
and frames are decoded once and not kept. So `FaceMeter` sits between the decoder and the engine: every few frames a
separate detector finds the faces, and on every frame each of them is measured in its latest box. When the landmarks are
there, `frame_quality` picks the measurements of the face that was annotated. A frame leaves 7 numbers per face, for at
most `MAX_FACES` faces: under 300 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from talkinghead.annotation import QUALITY_FIELDS
from talkinghead.geometry.face_regions import NUM_VERTICES, mouth_opening_ratio

if TYPE_CHECKING:
    from talkinghead.face.detector import Detection

MAX_FACES = 4
"""Faces that are measured in a frame, best score first. All are counted."""
SHARPNESS_HEIGHT = 128
"""Height in pixels to which a face is resized before its sharpness is measured, so that resolution does not count."""
JITTER_SIZE = 512
"""Longer side of the image, in pixels, to which landmark jitter refers."""

_MIN_BOX = 8  # pixels; a face box that is cut narrower by the image's border is not measured
_MIN_OVERLAP = 0.1  # intersection over union below which a detection is not the annotated face
# Columns of a measured face.
_BOX, _SCORE, _SHARPNESS, _BRIGHTNESS = slice(0, 4), 4, 5, 6


class Detector(Protocol):
    """Finds the faces of one frame."""

    def detect(self, frame: np.ndarray) -> list[Detection]:
        """Faces of a frame, RGB uint8 `[H, W, 3]`, best score first."""
        ...


class FaceMeter:
    """Measures the faces of the frames that pass through `watch`. One meter serves one clip."""

    def __init__(self, detector: Detector, every: int) -> None:
        """Start with no frames.

        Args:
            detector: Finds the faces.
            every: Frames from one detector pass to the next.
        """
        self._detector = detector
        self._every = every
        self.width = 0
        """Width of the frames in pixels, 0 before the first."""
        self.height = 0
        """Height of the frames in pixels, 0 before the first."""
        self.num_faces: list[int] = []
        """Number of faces in each frame, by the latest detector pass."""
        self.faces: list[np.ndarray] = []
        """Measured faces of each frame, `[N, 7]` float32: box (4, pixels), score, sharpness, brightness."""

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the frames on unchanged, measuring each before it goes.

        Raises:
            ValueError: A frame is no RGB image, or has another size than the first.
        """
        count, boxes = 0, np.empty((0, 5), dtype=np.float32)
        for number, frame in enumerate(frames):
            self._check(frame, number)
            if number % self._every == 0:
                found = self._detector.detect(frame)
                count = len(found)
                # After a pass that finds nothing the boxes stay, with score 0: a face may be where it was.
                boxes = self._boxes(found) if found else boxes * np.array([1, 1, 1, 1, 0], dtype=np.float32)
            self.num_faces.append(count)
            self.faces.append(_measure(frame, boxes))
            yield frame

    def _check(self, frame: np.ndarray, number: int) -> None:
        """Raise `ValueError` for a frame of another kind or size; the first one sets the size."""
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"frame {number} is {frame.dtype}{list(frame.shape)}, must be RGB uint8 [H, W, 3]")
        if number == 0:
            self.height, self.width = frame.shape[:2]
        elif frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"frame {number} is {frame.shape[1]} x {frame.shape[0]}, but the clip began with "
                f"{self.width} x {self.height}"
            )

    def _boxes(self, found: list[Detection]) -> np.ndarray:
        """Boxes in pixels and scores `[N, 5]` of the best `MAX_FACES` faces."""
        scale = np.array([self.width, self.height, self.width, self.height])
        return np.array([(*(face.box * scale), face.score) for face in found[:MAX_FACES]], dtype=np.float32)


def _measure(frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes and scores `[N, 5]` → `[N, 7]` with the sharpness and brightness of each face (NaN: out of the frame)."""
    measured = np.full((len(boxes), 7), np.nan, dtype=np.float32)
    measured[:, :5] = boxes
    height, width = frame.shape[:2]
    for row in measured:
        # The part of the box within the frame, in whole pixels.
        left, top, right, bottom = row[:4].tolist()
        x0, y0 = max(math.floor(left), 0), max(math.floor(top), 0)
        x1, y1 = min(math.ceil(right), width), min(math.ceil(bottom), height)
        if x1 - x0 >= _MIN_BOX and y1 - y0 >= _MIN_BOX:
            grey = cv2.cvtColor(frame[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
            row[_SHARPNESS], row[_BRIGHTNESS] = sharpness(grey), cv2.mean(grey)[0]
    return measured


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian of a grey face `[h, w]`, resized to `SHARPNESS_HEIGHT`; grey levels squared.

    Source: J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", 2000.
    """
    # At one height for all faces; the width follows.
    height, width = grey.shape
    size = (max(1, round(width * SHARPNESS_HEIGHT / height)), SHARPNESS_HEIGHT)
    shrinks = height > SHARPNESS_HEIGHT
    face = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(face, cv2.CV_16S))
    return float(deviation[0, 0]) ** 2


def frame_quality(landmarks: np.ndarray, mesh: np.ndarray, pose: np.ndarray, meter: FaceMeter) -> np.ndarray:
    """Quality of every frame.

    Args:
        landmarks: Landmarks `[F, 478, 3]`, normalised by the image.
        mesh: Metric mesh `[F, 468, 3]`, cm.
        pose: Head pose `[F, 6]`, degrees and cm.
        meter: Meter that has watched these frames.

    Returns:
        `[F, 11]` float32 in the order of `QUALITY_FIELDS`. A frame without a face is NaN but for `num_faces`. In a
        frame with one, `detection_score` is 0 and sharpness and brightness may be NaN where the detector has not found
        the annotated face, and `jitter_px` is NaN next to a frame without a face and at the clip's ends.
    """
    frames = len(landmarks)
    assert frames == len(meter.faces) == len(mesh) == len(pose)
    # The annotated face's box in pixels, from its landmarks.
    size = np.array([meter.width, meter.height], dtype=np.float64)
    points = landmarks[:, :NUM_VERTICES, :2] * size
    low, high = points.min(axis=1), points.max(axis=1)
    extent = high - low
    # The measurements of that face, [F, 3]; a clip without frames gets an empty array of this width.
    face = np.stack(
        [_annotated_face(seen, box) for seen, box in zip(meter.faces, np.hstack((low, high)), strict=True)]
        or [np.empty(3)]
    )[:frames]
    columns = {
        "num_faces": np.array(meter.num_faces),
        "detection_score": face[:, 0],
        "face_width_px": extent[:, 0],
        "face_height_px": extent[:, 1],
        "sharpness": face[:, 1],
        "brightness": face[:, 2],
        "pitch_deg": pose[:, 0],
        "yaw_deg": pose[:, 1],
        "roll_deg": pose[:, 2],
        "mouth_opening": mouth_opening_ratio(mesh),
        "jitter_px": jitter(points * JITTER_SIZE / size.max()),
    }
    return np.stack([columns[name] for name in QUALITY_FIELDS], axis=1).astype(np.float32)


def _annotated_face(seen: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Score, sharpness and brightness of the measured face `[N, 7]` that overlaps the landmarks' box most."""
    if not np.isfinite(box[0]):
        return np.full(3, np.nan)
    if len(seen):
        # Intersection over union with each measured face.
        corner, opposite = np.maximum(seen[:, :2], box[:2]), np.minimum(seen[:, 2:4], box[2:])
        shared = np.prod(np.maximum(opposite - corner, 0), axis=1)
        union = np.prod(seen[:, 2:4] - seen[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - shared
        overlap = shared / np.maximum(union, 1e-9)
        best = int(overlap.argmax())
        if overlap[best] >= _MIN_OVERLAP:
            return seen[best, [_SCORE, _SHARPNESS, _BRIGHTNESS]]
    return np.array([0.0, np.nan, np.nan])


def jitter(points: np.ndarray) -> np.ndarray:
    """Mean length in pixels of the landmarks' second difference in time, `[F]`, from points `[F, N, 2]` in pixels.

    It is NaN where the frame or a neighbour has no face, and at both ends.
    """
    second = np.full(len(points), np.nan)
    if len(points) > 2:
        second[1:-1] = np.linalg.norm(points[:-2] - 2 * points[1:-1] + points[2:], axis=2).mean(axis=1)
    return second
