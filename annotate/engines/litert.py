"""The `litert` engine: the face model's networks run directly, with the project's own tracking of the region."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from annotate.engines.region import Region
from annotate.landmarks import Landmarks
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.network import load_network
from talkinghead.face.portrait import NUM_LANDMARKS

# The landmarks that the blendshape network reads, in its order (MediaPipe, face_blendshapes_graph.cc).
# fmt: off
BLENDSHAPE_LANDMARKS = np.array([
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80,
    81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153,
    154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251,
    263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318,
    321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386,
    387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
])
# fmt: on

_NUM_BLENDSHAPES = 52


class LitertEngine:
    """Landmarks by the model's own networks: region of interest → landmark network → blendshape network.

    Without `tracking` the detector runs on every frame, as in MediaPipe's image mode; the frame before only decides
    between several faces, and bridges a frame in which no face is found. With it the region comes from the
    landmarks of the frame before, as in MediaPipe's video mode (but nothing is smoothed), and the detector runs only
    where there is none: in the first frame, and after the presence score fell.
    """

    def __init__(
        self, model: FaceModel, *, tracking: bool = False, threads: int = 1, min_presence: float = 0.5
    ) -> None:
        """Load the networks (once per process and thread).

        Args:
            model: Either release; the 468-point one leaves iris rows and blendshapes NaN.
            tracking: Whether the region follows the landmarks of the frame before.
            threads: Threads per network.
            min_presence: Lowest presence score of a frame with a face, between 0 and 1.

        Raises:
            ValueError: `min_presence` is not between 0 and 1.
        """
        if not 0 < min_presence < 1:
            raise ValueError(f"min_presence is {min_presence}, must be between 0 and 1")
        self.name = "litert-tracking" if tracking else "litert"
        self._detector = FaceDetector(model, threads)
        self._landmarks = load_network(model.landmarks, threads)
        self._blendshapes = load_network(model.blendshapes, threads) if model.blendshapes else None
        self._size = self._landmarks.input_shape[1]
        self._tracking = tracking
        self._min_logit = math.log(min_presence / (1 - min_presence))

    def __call__(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """Annotate the frames of one clip (RGB uint8 `[H, W, 3]`, all of one size, 25 fps, in order)."""
        points: list[np.ndarray] = []
        blendshapes: list[np.ndarray] = []
        found: np.ndarray | None = None  # the frame before's landmarks, the only state between frames
        for frame in frames:
            height, width = frame.shape[:2]
            found = self._locate(frame, found)
            row = np.full((NUM_LANDMARKS, 3), np.nan, dtype=np.float32)
            if found is not None:
                row[: len(found)] = found
            points.append(row)
            blendshapes.append(self.expression(found, width, height))
        return Landmarks(
            np.array(points, dtype=np.float32).reshape(-1, NUM_LANDMARKS, 3),
            np.array(blendshapes, dtype=np.float32).reshape(-1, _NUM_BLENDSHAPES),
        )

    def _locate(self, frame: np.ndarray, last: np.ndarray | None) -> np.ndarray | None:
        """Landmarks `[468 or 478, 3]` of a frame, given those of the frame before; None without a face."""
        height, width = frame.shape[:2]
        # Tracking: the region of the frame before, as long as the presence score holds.
        if self._tracking and last is not None:
            found = self.landmarks_in(frame, Region.of_landmarks(last, width, height))
            if found is not None:
                return found
        # Detection.
        regions = [Region.of_detection(detection, width, height) for detection in self._detector.detect(frame)]
        if last is not None and len(regions) > 1:  # stay with the same face
            before = Region.of_landmarks(last, width, height)
            regions.sort(key=lambda region: not before.contains(region.center_x, region.center_y))
        found = self.landmarks_in(frame, regions[0]) if regions else None
        if found is None and last is not None and not self._tracking:
            # A face that is missed for a moment is still where it was.
            found = self.landmarks_in(frame, Region.of_landmarks(last, width, height))
        return found

    def landmarks_in(self, frame: np.ndarray, region: Region) -> np.ndarray | None:
        """Landmarks `[468 or 478, 3]` in a region, normalised by the image; None when the network finds no face."""
        # Outputs: landmarks in pixels of the input, and the logit of a face's presence.
        outputs = self._landmarks.run(region.cut(frame, self._size), 1 / 255)
        if float(outputs[1].reshape(-1)[0]) < self._min_logit:
            return None
        return region.to_image(outputs[0].reshape(-1, 3) / self._size, frame.shape[1], frame.shape[0])

    def expression(self, points: np.ndarray | None, width: int, height: int) -> np.ndarray:
        """Blendshapes `[52]`; NaN without a face or without the network.

        Args:
            points: Landmarks of `landmarks_in`, or None without a face.
            width: Width of the frame in pixels.
            height: Height of the frame in pixels.
        """
        if points is None or self._blendshapes is None:
            return np.full(_NUM_BLENDSHAPES, np.nan, dtype=np.float32)
        # The network takes pixels, so that the image's aspect ratio does not distort the face.
        pixels = points[BLENDSHAPE_LANDMARKS, :2] * np.array([width, height], dtype=np.float32)
        return self._blendshapes.run(pixels)[0]
