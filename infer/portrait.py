"""The user's portrait: image, and the landmarks, mesh and head pose of its face.

Faces are found and measured as the annotation of training data does it, so the networks get what they were trained on.
An image without an upright face, but with one when it is turned by quarters, is turned.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.faces import QUARTERS, find_faces, turned, upright_turn
from infer.memory_limit import GIGABYTE, memory_limit
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Crop, Face, Portrait
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.media.image_file import read_image
from talkinghead.provenance import hash_file

log = logging.getLogger(__name__)

LISTED_FACES = 5
"""Most faces whose places a message names."""
_PIXEL = re.compile(r"(\d+),(\d+)")


def read_portrait(path: Path, model: FaceModel, *, face: str | None = None) -> Portrait:
    """Read a portrait and measure its face.

    Args:
        path: PNG, JPEG, WebP or BMP. It is turned upright by its EXIF data, and transparent pixels become white. Where
            no face is upright then, it is turned by quarters until one is, with a warning.
        model: Face model.
        face: Choice among several faces: a number (from 0, left to right), `largest`, or `X,Y`, the face at a pixel or
            nearest to it. None: the image must have exactly one face.

    Raises:
        ValueError: The file is no image or too large, there is no face, or the choice does not name one of several; the
            message tells where the faces are.
    """
    with memory_limit(f"the image {path}", GIGABYTE):
        image = read_image(path)
        degrees = upright_turn([image], model) or 0
        image = turned(image, degrees)
        faces = find_faces(image, model)
    if degrees:
        log.warning("warning: the face in %s is %s: the image is turned by %d° first", path, QUARTERS[degrees], degrees)
    height, width = image.shape[:2]
    chosen = choose_face(faces, width, height, face, str(path))
    return replace(_measured(image, chosen, model), turned_deg=degrees)


def crop_portrait(portrait: Portrait, crop: Crop, model: FaceModel) -> Portrait:
    """Part of a portrait, as a portrait of its own.

    The landmarks stay, but mesh and pose are measured anew: the camera looks at the middle of its image, which is
    another point now. Training data is measured in the same way, in clips that were cropped before.

    Args:
        portrait: Portrait.
        crop: Box in its image.
        model: Face model.
    """
    return _measured(crop.cut(portrait.image), portrait.face.cropped(crop), model)


def _measured(image: np.ndarray, face: Face, model: FaceModel) -> Portrait:
    """Portrait of an image and its face, with mesh and pose computed from the landmarks."""
    height, width = image.shape[:2]
    metric = canonical_face(model.geometry_metadata)
    mesh, matrix = metric_mesh(face.points[None], width, height, metric)
    return Portrait(image=image, face=face, mesh=mesh[0].astype(np.float32), pose_matrix=matrix[0])


def describe_portrait(path: Path, portrait: Portrait, face_model: str) -> dict[str, Any]:
    """Entry for `inputs` of a sidecar; `face_model` is the SHA-256 of the face model."""
    found = {
        "sha256": hash_file(path),
        "size": [portrait.width, portrait.height],
        "face": [round(value, 5) for value in portrait.face.extent],
        "face_model": face_model,
    }
    return found | ({"turned_deg": portrait.turned_deg} if portrait.turned_deg else {})


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
            f"no face was found in {name} ({width}x{height}), also not when it is turned: take an image in which a"
            " human face is upright, seen from the front, and at least a tenth of the image's longer side"
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
    # Of a crowd, the largest: those are meant most often.
    largest = sorted(range(len(faces)), key=lambda number: -_area(faces[number], width, height))[:LISTED_FACES]
    listed = "; ".join(f"face {number} {_where(faces[number], width, height)}" for number in sorted(largest))
    if len(faces) > LISTED_FACES:
        listed = f"the largest: {listed}; and {len(faces) - LISTED_FACES} smaller, left to right"
    some = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
    last = len(faces) - 1
    numbers = "--face 0" if last == 0 else f"--face 0 … {last}"
    raise ValueError(
        f"{some} in {name}, {what} {listed}. Choose with {numbers} or --face largest, or --face X,Y, the nearest to a"
        " pixel"
    )


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
