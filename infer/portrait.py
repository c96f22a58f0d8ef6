"""The user's portrait: image, and the landmarks, mesh and head pose of its face.

Faces are found and measured as the annotation of training data does it, so the networks get what they were trained on.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotate.engines.litert import NUM_LANDMARKS, LitertEngine
from annotate.engines.region import Region
from infer.framing import Crop
from infer.memory_limit import GIGABYTE, memory_limit
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.media.image_file import read_image
from talkinghead.provenance import hash_file

log = logging.getLogger(__name__)

MANY_OUTSIDE = 0.02
"""Share of landmarks beyond the image's border above which a face counts as cut."""

_PIXEL = re.compile(r"(\d+),(\d+)")


@dataclass(frozen=True, kw_only=True)
class Face:
    """Landmarks and blendshapes of a face in an image of W x H pixels."""

    points: np.ndarray
    """Landmarks `[478, 3]` float32: x/W, y/H, z/W. Iris rows are NaN when the face model has none."""
    blendshapes: np.ndarray | None
    """Blendshape scores `[52]` float32 in MediaPipe's order; None when the face model has no such network."""

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Box x0, y0, x1, y1 around the landmarks: x/W, y/H."""
        (x0, y0), (x1, y1) = self.points[:NUM_VERTICES, :2].min(axis=0), self.points[:NUM_VERTICES, :2].max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def outside(self) -> float:
        """Share of the landmarks that lie beyond the image's border."""
        xy = self.points[:NUM_VERTICES, :2]
        return float(((xy < 0) | (xy > 1)).any(axis=1).mean())


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A portrait and the measurements of its face that the pipelines use."""

    image: np.ndarray
    """Image RGB uint8 `[H, W, 3]`, upright."""
    face: Face
    """Face that is animated."""
    mesh: np.ndarray
    """Mesh of the face, with the expression it has in the image: `[468, 3]` float32 in canonical space, cm."""
    pose_matrix: np.ndarray
    """Head pose: `[4, 4]` float64, canonical → camera space, cm."""

    @property
    def width(self) -> int:
        """Width of the image in pixels."""
        return self.image.shape[1]

    @property
    def height(self) -> int:
        """Height of the image in pixels."""
        return self.image.shape[0]

    @property
    def face_px(self) -> tuple[float, float, float, float]:
        """Box x0, y0, x1, y1 around the landmarks in pixels."""
        x0, y0, x1, y1 = self.face.extent
        return x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height

    def cropped(self, crop: Crop, model: FaceModel) -> Portrait:
        """Part of the portrait, as a portrait of its own.

        The landmarks stay, but mesh and pose are measured anew: the camera looks at the middle of its image, which is
        another point now. Training data is measured in the same way, in clips that were cropped before.

        Args:
            crop: Box in this portrait's image.
            model: Face model.
        """
        face = Face(points=crop.points(self.face.points), blendshapes=self.face.blendshapes)
        return _measured(crop.cut(self.image), face, model)


def read_portrait(path: Path, model: FaceModel, *, face: str | None = None) -> Portrait:
    """Read a portrait and measure its face.

    Args:
        path: PNG, JPEG, WebP or BMP. It is turned upright by its EXIF data, and transparent pixels become white.
        model: Face model.
        face: Choice among several faces: a number (from 0, left to right), `largest`, or `X,Y`, the face at a pixel or
            nearest to it. None: the image must have exactly one face.

    Raises:
        ValueError: The file is no image or too large, there is no face, or the choice does not name one of several; the
            message tells where the faces are.
    """
    with memory_limit(f"the image {path}", GIGABYTE):
        image = read_image(path)
        faces = find_faces(image, model)
    height, width = image.shape[:2]
    return _measured(image, choose_face(faces, width, height, face, str(path)), model)


def _measured(image: np.ndarray, face: Face, model: FaceModel) -> Portrait:
    """Portrait of an image and its face, with mesh and pose computed from the landmarks."""
    height, width = image.shape[:2]
    metric = canonical_face(model.geometry_metadata)
    mesh, matrix = metric_mesh(face.points[None], width, height, metric)
    return Portrait(image=image, face=face, mesh=mesh[0].astype(np.float32), pose_matrix=matrix[0])


def warn_of_portrait(path: Path, portrait: Portrait) -> None:
    """Warn of a portrait that can be animated, but not well."""
    if portrait.face.outside > MANY_OUTSIDE:
        log.warning(
            "warning: the face in %s is cut by the image's border (%.0f %% of its landmarks lie outside, where they"
            " are guessed): a portrait with the whole face moves better",
            path,
            100 * portrait.face.outside,
        )


def describe_portrait(path: Path, portrait: Portrait, face_model: str) -> dict[str, Any]:
    """Entry for `inputs` of a sidecar; `face_model` is the SHA-256 of the face model."""
    return {
        "sha256": hash_file(path),
        "size": [portrait.width, portrait.height],
        "face": [round(value, 5) for value in portrait.face.extent],
        "face_model": face_model,
    }


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


def choose_face(faces: list[Face], width: int, height: int, choice: str | None, name: str) -> Face:
    """Choose one of the faces found in an image.

    Args:
        faces: Faces, left to right.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        choice: Number, `largest`, `X,Y`, or None, as for `read_portrait`.
        name: Name of the image for messages.

    Raises:
        ValueError: The choice is malformed, there is no face, or the choice does not name one of several.
    """
    # A malformed choice is reported first: it is wrong for every image.
    pixel = _PIXEL.fullmatch(choice or "")
    if choice not in (None, "largest") and not pixel and not str(choice).isdecimal():
        raise ValueError(f"--face is {choice!r}, must be a number (0, 1, …), 'largest', or X,Y in pixels")
    if not faces:
        raise ValueError(
            f"no face was found in {name} ({width}x{height}): take an image in which a face is upright, seen from the"
            " front, and at least a tenth of the image's longer side"
        )

    # The choice; without one, the only face.
    if choice == "largest":
        return max(faces, key=lambda face: _area(face, width, height))
    if pixel:
        x, y = (int(value) for value in pixel.groups())
        return min(faces, key=lambda face: _away(face, x / width, y / height, width / height))
    if choice is None and len(faces) == 1:
        return faces[0]
    if choice is not None and int(choice) < len(faces):
        return faces[int(choice)]

    # None is chosen, or one that is not there: the message lists the faces with their places.
    what = "which is meant?" if choice is None else f"there is no face {choice}."
    listed = "; ".join(f"face {number} {_where(face, width, height)}" for number, face in enumerate(faces))
    some = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
    last = len(faces) - 1
    numbers = "--face 0" if last == 0 else f"--face 0 … {last}"
    raise ValueError(f"{some} in {name}, {what} {listed}. Choose with {numbers} or --face largest")


def _area(face: Face, width: int, height: int) -> float:
    """Area of the box around a face in square pixels."""
    x0, y0, x1, y1 = face.extent
    return (x1 - x0) * width * (y1 - y0) * height


def _away(face: Face, x: float, y: float, aspect: float) -> float:
    """Distance of a normalised point from a face's middle, in heights of the image; `aspect` is width / height."""
    x0, y0, x1, y1 = face.extent
    return float(np.hypot(((x0 + x1) / 2 - x) * aspect, (y0 + y1) / 2 - y))


def _where(face: Face, width: int, height: int) -> str:
    """Place of a face in words, in pixels of the image."""
    x0, y0, x1, y1 = face.extent
    return f"at x {x0 * width:.0f} to {x1 * width:.0f}, y {y0 * height:.0f} to {y1 * height:.0f} pixels"
