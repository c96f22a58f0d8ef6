"""BlazeFace, short range: the boxes and six keypoints of the faces in one image.

Letterboxing, anchors, decoding and weighted non-maximum suppression follow MediaPipe's `face_detector_graph.cc`, so the
boxes agree with those of MediaPipe's own detector.

Shapes: `H`, `W` height and width of the frame in pixels; `N` faces, or candidates for one. The network has 896 anchors,
16 numbers each: a box (centre, size) and six keypoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from talkinghead.face.model import FaceModel
from talkinghead.face.network import load_network

RIGHT_EYE, LEFT_EYE, NOSE_TIP, MOUTH, RIGHT_EAR, LEFT_EAR = range(6)
"""Rows of `Detection.keypoints`; left and right are the subject's own."""

_SIZE = 128
_LAYERS = ((16, 2), (8, 6))  # cells per side, anchors per cell: strides 8, 16, 16, 16 with two anchors each

_TILE_DIVISORS = (1, 2)  # tiles of the short side, then of half of it
_TILE_MIN_SCORE = 0.75  # many parts of a scene give more false detections than the whole (measured: none above this)


@dataclass(frozen=True)
class Detection:
    """One face. Coordinates are fractions of the frame's width and height, and may lie outside 0 .. 1."""

    score: float
    """Confidence, 0 .. 1."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1: forehead to chin, ear to ear, roughly."""
    keypoints: np.ndarray
    """`[6, 2]` float32: right eye, left eye, nose tip, mouth, right ear, left ear (the subject's sides)."""


class FaceDetector:
    """Finds the faces of an image. Holds no state between images; belongs to the thread that made it."""

    def __init__(
        self, model: FaceModel, threads: int = 1, *, min_score: float = 0.5, min_suppression: float = 0.3
    ) -> None:
        """Load the detector of a face model.

        Args:
            model: The face model; both releases carry the same detector architecture.
            threads: Threads of the network.
            min_score: Lowest score that counts as a face, between 0 and 1.
            min_suppression: Overlap (intersection over union) above which two boxes are one face.

        Raises:
            ValueError: `min_score` is not between 0 and 1, or the detector is no TFLite model.
        """
        if not 0 < min_score < 1:
            raise ValueError(f"min_score is {min_score}, must be between 0 and 1")
        self._network = load_network(model.detector, threads)
        self._anchors = _anchors()
        # The threshold as a logit, so that the sigmoid is computed for the few anchors above it only.
        self._min_logit = math.log(min_score / (1 - min_score))
        self._min_suppression = min_suppression

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> list[Detection]:
        """The faces of one frame, best score first.

        Args:
            frame: RGB uint8 `[H, W, 3]`.
            small_faces: When nothing is found, search overlapping square tiles too. The network gets 128x128 pixels,
                in which a face under about 10 % of the longer side is not found; with tiles, faces down to 5 % are
                found. Costs 3 and then 21 more passes of the network (about 1 ms each) in a 16:9 frame without a face.
        """
        height, width = frame.shape[:2]
        # The whole frame in one pass; if nothing is found, its tiles, ever smaller.
        found = self._look(frame, width / 2, height / 2, max(width, height))
        sides = [min(width, height) / divisor for divisor in _TILE_DIVISORS] if small_faces else []
        while len(found) == 0 and sides:
            side = sides.pop(0)
            found = np.concatenate([self._look(frame, x, y, side) for x, y in _tile_centers(width, height, side)])
            # Tiles overlap by half, so a face is found in several.
            found = _suppress(found[found[:, 0] >= _TILE_MIN_SCORE], self._min_suppression)
        # From pixels to fractions of the frame.
        found[:, 1:] /= (width, height) * 8
        return [
            Detection(float(row[0]), tuple(row[1:5].tolist()), row[5:].reshape(6, 2).astype(np.float32))
            for row in found
        ]

    def _look(self, frame: np.ndarray, center_x: float, center_y: float, side: float) -> np.ndarray:
        """Faces in a square of the image, as `[N, 17]`: score, box (4) and keypoints (12) in pixels of the frame."""
        left, top = center_x - side / 2, center_y - side / 2
        pixels = _square(frame, left, top, side)
        regressors, logits = self._network.run(pixels, 1 / 127.5, -1.0)  # [1, 896, 16], [1, 896, 1]; input -1 .. 1
        rows = self._decode(regressors[0], logits[0, :, 0])
        rows[:, 1:] = rows[:, 1:] * side + (left, top) * 8
        return rows

    def _decode(self, regressors: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Faces `[N, 17]` in units of the square, suppressed, from `[896, 16]` anchor offsets and `[896]` logits."""
        # Scores of the anchors above the threshold.
        chosen = np.flatnonzero(logits >= self._min_logit)
        scores = 1.0 / (1.0 + np.exp(-np.clip(logits[chosen].astype(np.float64), -80.0, 80.0)))
        # Offsets are pixels of the input; centre and keypoints count from the anchor's centre.
        points = regressors[chosen].reshape(-1, 8, 2) / _SIZE  # [N, 8, 2]: centre, size, and six keypoints
        center, size, keypoints = points[:, 0], points[:, 1], points[:, 2:]
        center += self._anchors[chosen]
        keypoints += self._anchors[chosen, None]
        # Rows of score, box corners and keypoints; a negative size is no face.
        rows = np.empty((len(chosen), 17))
        rows[:, 0] = scores
        rows[:, 1:3] = center - size / 2
        rows[:, 3:5] = center + size / 2
        rows[:, 5:] = keypoints.reshape(-1, 12)
        return _suppress(rows[(size >= 0).all(axis=1)], self._min_suppression)


def _square(frame: np.ndarray, left: float, top: float, side: float) -> np.ndarray:
    """A square of the image as the network's input `[128, 128, 3]`, black beyond the image."""
    height, width = frame.shape[:2]
    inside = 0 <= left <= width - side and 0 <= top <= height - side
    if inside and left % 1 == top % 1 == side % _SIZE == 0:
        # Every sample falls on a pixel, as in clips of 512x512; interpolation gives its value at five times the cost.
        x, y, end = int(left), int(top), int(side)
        return cv2.resize(frame[y : y + end, x : x + end], (_SIZE, _SIZE), interpolation=cv2.INTER_NEAREST)
    zoom = _SIZE / side
    to_input = np.array([[zoom, 0, -left * zoom], [0, zoom, -top * zoom]])
    return cv2.warpAffine(frame, to_input, (_SIZE, _SIZE), flags=cv2.INTER_LINEAR)


def _anchors() -> np.ndarray:
    """Anchor centres `[896, 2]` in units of the input; the anchor size is 1."""
    layers = []
    for cells, per_cell in _LAYERS:
        centers = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        y, x = np.meshgrid(centers, centers, indexing="ij")
        layers.append(np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), per_cell, axis=0))
    return np.concatenate(layers)


def _suppress(rows: np.ndarray, threshold: float) -> np.ndarray:
    """Weighted non-maximum suppression of faces `[N, 17]`, best score first in the result.

    Each group of faces that overlap the best one becomes its average, weighted by score, with the best score.
    """
    rows = rows[np.argsort(-rows[:, 0], kind="stable")]
    kept = []
    while len(rows):
        overlap = _overlap(rows[0, 1:5], rows[:, 1:5])
        overlap[0] = np.inf  # a box without area does not overlap itself
        group = rows[overlap > threshold]
        merged = (group[:, :1] * group).sum(axis=0) / group[:, 0].sum()
        merged[0] = rows[0, 0]
        kept.append(merged)
        rows = rows[overlap <= threshold]
    return np.array(kept, dtype=np.float64).reshape(-1, 17)


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box `[4]` with each of `[N, 4]`."""
    size = np.maximum(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0)
    shared = size[:, 0] * size[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = (box[2] - box[0]) * (box[3] - box[1]) + areas - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _tile_centers(width: int, height: int, side: float) -> list[tuple[float, float]]:
    """Centres of squares of `side` that overlap by half and cover the image."""
    lines = []
    for extent in (width, height):
        count = max(1, math.ceil(2 * extent / side) - 1)
        lines.append(np.linspace(side / 2, extent - side / 2, count) if count > 1 else np.array([extent / 2]))
    return [(float(x), float(y)) for y in lines[1] for x in lines[0]]
