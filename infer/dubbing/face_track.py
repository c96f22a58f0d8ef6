"""The face that is dubbed: followed through the video, framed, and its motion in the frame's camera.

Networks for images were trained on clips that a box was cut out of before they were measured, a box that stands still
while the head moves. So each shot gets one box where the face keeps at least `STEADY_SHARE` of it; where the head moves
too far for that, the box moves with it, smoothly. Boxes have whole pixels, so that what is put back is not blurred by
moving it, and landmarks are measured in the box of their frame, so that they lie in it exactly.

Which face it is: the one chosen in the first frame that shows any, and from there the one that is nearest to where it
was. Frames in which it is not found are not dubbed.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from annotate.engines.litert import LitertEngine
from annotate.engines.region import Region
from infer.faces import find_faces
from infer.framing import FACE_SHARE, TIGHTEST, face_crop
from infer.portrait import choose_face
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import NUM_LANDMARKS, Crop, Face, Portrait
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.face_regions import NUM_VERTICES, mouth_opening_ratio
from talkinghead.motion.gaps import bridged, interpolated
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import NeutralMesh, neutral_mesh
from talkinghead.motion.smoothing import moving_average
from talkinghead.timebase import FPS

STEADY_SHARE = 0.4
"""Least share of a box that stands still which the face takes in height or width; below it the box moves."""
_WINDOW = 2 * (FPS // 2) + 1  # frames over which a moving box is smoothed: one second
_CHUNK = 500  # frames whose mesh is fitted at once
_NUM_BLENDSHAPES = 52
_PLAIN_TURN_DEG, _PLAIN_OPENING = 15.0, 0.1  # what costs a reference as much as half the sharpness
_STILL_THERE_S = 1.0  # time for which a face that is not detected is looked for where it was


class FaceFollower:
    """Follows one face through frames that are given one after the other."""

    def __init__(self, model: FaceModel, choice: str | None, name: str) -> None:
        """Start before the first frame.

        Args:
            model: Face model.
            choice: Which of several faces, as for `choose_face`.
            name: Name of the video, for messages.
        """
        self._model, self._choice, self._name = model, choice, name
        self._engine, self._detector = LitertEngine(model), FaceDetector(model)
        self._last: np.ndarray | None = None
        self._missing = 0
        self._several = False
        self._points: list[np.ndarray] = []
        self._blendshapes: list[np.ndarray] = []
        self._sharpness: list[float] = []

    def add(self, image: np.ndarray) -> None:
        """Take the next frame, RGB uint8 `[H, W, 3]`.

        Raises:
            ValueError: It is the first one with faces, and the choice names none of them.
        """
        height, width = image.shape[:2]
        found = self._choose(image) if self._last is None else self._follow(image, self._last)
        row = np.full((NUM_LANDMARKS, 3), np.nan, np.float32)
        if found is None:
            self._missing += 1
        else:
            row[: len(found)] = found
            self._last, self._missing = found, 0
        self._points.append(row)
        self._blendshapes.append(self._engine.expression(found, width, height))
        self._sharpness.append(math.nan if found is None else _sharpness(image, found))

    def _choose(self, image: np.ndarray) -> np.ndarray | None:
        """Landmarks of the face that is meant; None where the frame shows none."""
        faces = find_faces(image, self._model)
        if not faces:
            return None
        self._several = len(faces) > 1
        where = f"frame {len(self._points)} of {self._name}"
        face = choose_face(faces, image.shape[1], image.shape[0], self._choice, where)
        return face.points[:NUM_VERTICES] if np.isnan(face.points[-1, 0]) else face.points

    def _follow(self, image: np.ndarray, last: np.ndarray) -> np.ndarray | None:
        """Landmarks of the same face in the next frame; None where it is not there."""
        height, width = image.shape[:2]
        before = Region.of_landmarks(last, width, height)
        regions = [Region.of_detection(detection, width, height) for detection in self._detector.detect(image)]
        self._several = self._several or len(regions) > 1
        near = [region for region in regions if before.contains(region.center_x, region.center_y)]
        near.sort(key=lambda region: math.hypot(region.center_x - before.center_x, region.center_y - before.center_y))
        # The only face that was ever seen is the same one, also after a cut.
        if not near and not self._several:
            near = regions
        found = self._engine.landmarks_in(image, near[0]) if near else None
        if found is None and self._missing < _STILL_THERE_S * FPS:
            found = self._engine.landmarks_in(image, before)
        return found

    def found(self) -> FollowedFace:
        """What was found in all frames so far.

        Raises:
            ValueError: No frame shows a face.
        """
        points = np.array(self._points, np.float32).reshape(-1, NUM_LANDMARKS, 3)
        if not np.isfinite(points[:, 0, 0]).any():
            raise ValueError(f"no face was found in the {len(points)} frames of {self._name}")
        return FollowedFace(
            points=points,
            blendshapes=np.array(self._blendshapes, np.float32).reshape(-1, _NUM_BLENDSHAPES),
            sharpness=np.array(self._sharpness),
        )


def _sharpness(image: np.ndarray, points: np.ndarray) -> float:
    """Variance of the Laplacian over the box of a face's landmarks, grey levels squared."""
    height, width = image.shape[:2]
    corners = points[:NUM_VERTICES, :2] * (width, height)
    x0, y0 = np.clip(corners.min(axis=0).astype(int), 0, (width - 1, height - 1))
    x1, y1 = np.clip(corners.max(axis=0).astype(int) + 1, (x0 + 1, y0 + 1), (width, height))
    grey = cv2.cvtColor(np.ascontiguousarray(image[y0:y1, x0:x1]), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


@dataclass(frozen=True, kw_only=True, eq=False)
class FollowedFace:
    """A face in each of F frames of a video."""

    points: np.ndarray
    """Landmarks `[F, 478, 3]` float32, normalised by the frame; NaN where the face was not found."""
    blendshapes: np.ndarray
    """`[F, 52]` float32; NaN where the face was not found, or the face model has no network for them."""
    sharpness: np.ndarray
    """Variance of the Laplacian over the face, `[F]`; NaN where it was not found."""

    def __len__(self) -> int:
        return len(self.points)

    @property
    def valid(self) -> np.ndarray:
        """Frames with the face, `[F]` bool."""
        return np.isfinite(self.points[:, 0, 0])

    def part(self, count: int) -> FollowedFace:
        """The first `count` frames."""
        return FollowedFace(
            points=self.points[:count], blendshapes=self.blendshapes[:count], sharpness=self.sharpness[:count]
        )

    def extents(self, width: int, height: int) -> np.ndarray:
        """Box x0, y0, x1, y1 around the landmarks of each frame, `[F, 4]` pixels; gaps are interpolated."""
        xy = self.points[:, :NUM_VERTICES, :2] * (width, height)
        return interpolated(np.concatenate((xy.min(axis=1), xy.max(axis=1)), axis=1), self.valid)


@dataclass(frozen=True, kw_only=True, eq=False)
class FramedFace:
    """A followed face as networks take it: in the box of each frame, with its motion in the box's camera."""

    crops: list[Crop]
    """Box of each frame."""
    points: np.ndarray
    """Landmarks `[F, 478, 3]` float32, normalised by the box of their frame; NaN where the face was not found."""
    motion: Motion
    """Motion in the camera of the boxes, without gaps."""
    neutral: NeutralMesh
    """The face at rest, and how it was found."""
    face: FollowedFace
    """What it was made of."""

    def reference_frame(self) -> int:
        """Frame that shows the face best: from the front, with the mouth closed, and sharp."""
        valid = self.face.valid
        pose = self.motion.pose[valid]
        sharp = self.face.sharpness[valid]
        cost = (
            mouth_opening_ratio(self.motion.meshes()[valid]) / _PLAIN_OPENING
            + np.abs(pose[:, :2]).max(axis=1) / _PLAIN_TURN_DEG
            - np.log2(np.maximum(sharp, 1e-3) / max(float(np.median(sharp)), 1e-3))
        )
        return int(np.flatnonzero(valid)[np.argmin(cost)])

    def portrait(self, number: int, image: np.ndarray) -> Portrait:
        """The portrait that a frame shows, at rest: with the neutral mesh, which speech is added to.

        Args:
            number: Number of a frame with a face.
            image: That frame, RGB uint8 `[H, W, 3]`.
        """
        blendshapes = self.face.blendshapes[number]
        return Portrait(
            image=self.crops[number].cut(image),
            face=Face(points=self.points[number], blendshapes=blendshapes if np.isfinite(blendshapes).all() else None),
            mesh=self.motion.neutral,
            pose_matrix=self.motion.pose_matrix[number],
        )


def framed(
    face: FollowedFace, model: FaceModel, *, width: int, height: int, aspect: float, cuts: list[int]
) -> FramedFace:
    """Frame a face, and measure its motion in the camera of its boxes.

    Args:
        face: Followed face.
        model: Face model.
        width: Width of the video in pixels.
        height: Height of the video in pixels.
        aspect: Width / height of the boxes, that of the images that networks generate.
        cuts: First frames of further shots, in order.
    """
    crops = crop_path(face.extents(width, height), width, height, aspect, cuts)
    points = np.stack([crop.points(row) for crop, row in zip(crops, face.points, strict=True)])
    canonical = canonical_face(model.geometry_metadata)
    mesh = np.empty((len(face), NUM_VERTICES, 3), np.float32)
    pose_matrix = np.empty((len(face), 4, 4))
    # Landmarks are normalised, so one size of the aspect stands for all boxes.
    size = (crops[0].width, crops[0].height)
    for first in range(0, len(face), _CHUNK):
        some = slice(first, first + _CHUNK)
        mesh[some], pose_matrix[some] = metric_mesh(points[some], *size, canonical)
    neutral = neutral_mesh(mesh, face.blendshapes, face.valid)
    motion = Motion(
        pose_matrix=pose_matrix,
        neutral=neutral.mesh,
        mesh=mesh,
        valid=face.valid,
        fps=FPS,
        width=size[0],
        height=size[1],
    )
    return FramedFace(crops=crops, points=points, motion=bridged(motion), neutral=neutral, face=face)


def crop_path(extents: np.ndarray, width: int, height: int, aspect: float, cuts: list[int]) -> list[Crop]:
    """Box for each frame: one for a shot where the face stays large enough in it, else one that moves with the face.

    Args:
        extents: Box x0, y0, x1, y1 around the face in each frame, `[F, 4]` pixels.
        width: Width of the video in pixels.
        height: Height of the video in pixels.
        aspect: Width / height of the boxes.
        cuts: First frames of further shots, in order.
    """
    crops: list[Crop] = []
    borders = [0, *(cut for cut in cuts if 0 < cut < len(extents)), len(extents)]
    for begin, end in itertools.pairwise(borders):
        shot = extents[begin:end]
        # Height of a box of the aspect that the face takes up, and what all its places together take up.
        needed = float(np.median(_needed(shot, aspect)))
        reached = np.concatenate((shot[:, :2].min(axis=0), shot[:, 2:].max(axis=0)))
        share = min(TIGHTEST, FACE_SHARE * float(_needed(reached[None], aspect)[0]) / needed)
        steady = face_crop(tuple(reached.tolist()), width, height, aspect, share)
        if needed / steady.height >= STEADY_SHARE:
            crops += [steady] * len(shot)
        else:
            crops += [face_crop(tuple(box), width, height, aspect) for box in _smooth(shot).tolist()]
    return crops


def _needed(extents: np.ndarray, aspect: float) -> np.ndarray:
    """Least height of a box of an aspect around each extent, `[F, 4]` → `[F]`."""
    return np.maximum(extents[:, 3] - extents[:, 1], (extents[:, 2] - extents[:, 0]) / aspect)


def _smooth(extents: np.ndarray) -> np.ndarray:
    """Boxes that contain the extents, `[F, 4]`, and move smoothly.

    Their middles are a moving average; how far they reach is that of the farthest within a window, averaged over a
    window of the same length: still as far as each frame's own, because every one of these is.
    """
    half = min(_WINDOW // 2, len(extents) - 1)
    window = 2 * half + 1
    # Mirrored about the ends, so that a steady movement stays one there.
    padded = np.pad((extents[:, :2] + extents[:, 2:]) / 2, ((half, half), (0, 0)), mode="reflect", reflect_type="odd")
    middles = moving_average(padded, window)[half : half + len(extents)]
    reach = np.maximum(middles - extents[:, :2], extents[:, 2:] - middles)
    padded = np.pad(reach, ((half, half), (0, 0)), mode="edge")
    reach = moving_average(np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).max(axis=2), window)
    return np.concatenate((middles - reach, middles + reach), axis=1)
