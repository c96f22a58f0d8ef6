"""The faces in an image: where they are, how steady their landmarks are, and which way up the image is.

A face counts as steady where its landmarks stay when it is looked at again: the landmark network gets the face five
times, its region larger, smaller and leant to both sides. What is no human face, or one upside down, has landmarks that
depend on the region. The spread of the landmarks, as a share of the face's size, on all that the landmark network takes
for a face (its presence score is as high for a dog as for a person):

    people, drawn ones too, sharp, in half the size, leant by 20°   0.005 .. 0.018, turned by 55° 0.022
    dogs, cats, cheetahs, a raccoon (43 crops of 6 images)          0.024 .. 0.16
    the same people strongly blurred                                up to 0.024; 2 of 52 misplaced, 0.06 and 0.19

With the 468-point face model people have up to 0.015, animals 0.031 and more.

A covered mouth shows in the same way: landmarks of the lips spread more than those of the eyes. With a mask, a patch of
skin or a microphone drawn over the mouth, in 103 of 126 frames of clips (31 of 36 portraits) the lips' spread exceeds
0.010 and is twice the eyes'; without, in 3 of 198, all of one clip, and in no portrait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from annotate.engines.litert import LitertEngine
from annotate.engines.region import Region
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import NUM_LANDMARKS, Face
from talkinghead.geometry.face_regions import EYES, LIPS, NUM_VERTICES

UPRIGHT_DEG = 60.0
"""Largest lean of a face that counts as upright, degrees: beyond, a quarter turn of the image helps."""
LARGEST_SPREAD = 0.022
"""Spread of the landmarks above which a face is not steady, in sizes of the face."""
_COVERED_SPREAD, _COVERED_RATIO = 0.010, 2.0

QUARTERS = {180: "upside down", 90: "lying on its right side", 270: "lying on its left side"}
"""Turn in degrees clockwise that puts a face upright → how the face is without it; the first one tried first."""
_LOOKS = ((1.0, 0.0), (0.85, 0.0), (1.2, 0.0), (1.0, 12.0), (1.0, -12.0))
# Size of the region, as a share of the usual one, and its lean in degrees, for each look at a face.
_RIGHT_CORNER, _LEFT_CORNER = 33, 263  # outer corners of the eyes; sides are the subject's


def find_faces(image: np.ndarray, model: FaceModel) -> list[Face]:
    """Faces in an image, left to right, measured as in the annotation.

    A detection that the landmark network does not confirm as a face is left out.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        model: Face model.
    """
    height, width = image.shape[:2]
    engine = LitertEngine(model)
    faces = []
    for detection in FaceDetector(model).detect(image, small_faces=True):
        found = engine.landmarks_in(image, Region.of_detection(detection, width, height))
        if found is None:
            continue
        # A face model with 468 landmarks has no irises: their rows stay NaN.
        points = np.full((NUM_LANDMARKS, 3), np.nan, dtype=np.float32)
        points[: len(found)] = found
        blendshapes = engine.expression(found, width, height) if model.blendshapes else None
        faces.append(Face(points=points, blendshapes=blendshapes))
    return sorted(faces, key=lambda face: face.extent[0] + face.extent[2])  # by the middle


@dataclass(frozen=True, kw_only=True)
class Steadiness:
    """Spread of a face's landmarks over several looks, root mean square, in sizes of the face.

    All are infinite where a look finds no face.
    """

    face: float
    lips: float
    eyes: float

    @property
    def steady(self) -> bool:
        """Whether the landmarks stay where they are, as a human face's do."""
        return self.face <= LARGEST_SPREAD

    @property
    def covered_mouth(self) -> bool:
        """Whether the lips alone are unsteady, as with a hand, a mask or a microphone in front of them."""
        return self.steady and self.lips > _COVERED_SPREAD and self.lips > _COVERED_RATIO * self.eyes


def steadiness(image: np.ndarray, face: Face, model: FaceModel) -> Steadiness:
    """Look at a face several times.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        face: Face that was found in it.
        model: Face model.
    """
    height, width = image.shape[:2]
    engine = LitertEngine(model)
    region = Region.of_landmarks(face.points[:NUM_VERTICES], width, height)
    looks = []
    for size, lean in _LOOKS:
        turned_region = replace(
            region,
            width=region.width * size,
            height=region.height * size,
            rotation=region.rotation + math.radians(lean),
        )
        found = engine.landmarks_in(image, turned_region)
        if found is None:
            return Steadiness(face=math.inf, lips=math.inf, eyes=math.inf)
        looks.append(found[:NUM_VERTICES, :2] * (width, height))
    points = np.stack(looks)  # [looks, 468, 2], pixels
    squared = ((points - points.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0)  # [468]
    side = math.sqrt(float(np.prod(np.ptp(points[0], axis=0))))
    face_spread, lips, eyes = (
        math.sqrt(float(squared[vertices].mean())) / side for vertices in (slice(None), list(LIPS), list(EYES))
    )
    return Steadiness(face=face_spread, lips=lips, eyes=eyes)


def lean_deg(face: Face, width: int, height: int) -> float:
    """Angle of the line between a face's eyes in an image of this size in pixels, degrees clockwise, within ±180."""
    across, down = (face.points[_LEFT_CORNER, :2] - face.points[_RIGHT_CORNER, :2]) * (width, height)
    return math.degrees(math.atan2(float(down), float(across)))


def turned(image: np.ndarray, degrees: int) -> np.ndarray:
    """An image `[H, W, 3]` turned clockwise by 0, 90, 180 or 270 degrees; the same array for 0."""
    return image if degrees == 0 else np.ascontiguousarray(np.rot90(image, -degrees // 90))


def upright_turn(images: Sequence[np.ndarray], model: FaceModel) -> int | None:
    """Turn in degrees clockwise that shows an upright face in images that are turned in the same way.

    Args:
        images: One image, or a few frames of a video, RGB uint8 `[H, W, 3]`.
        model: Face model.

    Returns:
        0 where an image shows an upright face as it is. Else 90, 180 or 270: the turn with the most upright faces, then
        the one whose landmarks are steadiest. None where no turn shows one.
    """
    if any(_uprightness([image], model)[0] for image in images):
        return 0
    best, turn = (0, 0.0), None
    for degrees in QUARTERS:
        rank = _uprightness([turned(image, degrees) for image in images], model)
        if rank > best:
            best, turn = rank, degrees
    return turn


def _uprightness(images: Sequence[np.ndarray], model: FaceModel) -> tuple[int, float]:
    """Number of faces that are upright and steady, and the negative spread of the steadiest one's landmarks.

    On an upside-down face the networks find an upright one at times: not a steady one.
    """
    spreads = []
    for image in images:
        height, width = image.shape[:2]
        for face in find_faces(image, model):
            if abs(lean_deg(face, width, height)) <= UPRIGHT_DEG:
                look = steadiness(image, face, model)
                spreads += [look.face] * look.steady
    return len(spreads), -min(spreads, default=0.0)
