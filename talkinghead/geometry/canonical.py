"""The canonical face that every metric mesh and every head pose is measured against.

Convention:
    Canonical space is in centimetres: +x image right, +y up, +z towards the camera, origin inside the head between the
    ears. Row i is landmark i of MediaPipe's 468-point face mesh. The Procrustes weights say how much each landmark
    counts when the head pose is fitted: 33 of them, on parts that move little in speech.

MediaPipe's own canonical face is part of its model bundle and is read from there. A model without a bundle gets
`mean_face`, which was measured on real clips (`python -m annotate.mean_face`) in the same space.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np

from talkinghead.geometry.face_regions import NUM_VERTICES

MEAN_FACE_FILE = "mean_face.npz"

PROCRUSTES_WEIGHTS = {
    4: 0.070909939706326,
    6: 0.032100144773722,
    10: 0.008446550928056,
    33: 0.058724168688059,
    54: 0.007667080033571,
    67: 0.009078059345484,
    117: 0.009791937656701,
    119: 0.014565368182957,
    121: 0.018591361120343,
    127: 0.005197994410992,
    129: 0.120625205338001,
    132: 0.005560018587857,
    133: 0.053286183625460,
    136: 0.066890455782413,
    143: 0.014816547743976,
    147: 0.014262833632529,
    198: 0.025462191551924,
    205: 0.047252278774977,
    263: 0.058724168688059,
    284: 0.007667080033571,
    297: 0.009078059345484,
    346: 0.009791937656701,
    348: 0.014565368182957,
    350: 0.018591361120343,
    356: 0.005197994410992,
    358: 0.120625205338001,
    361: 0.005560018587857,
    362: 0.053286183625460,
    365: 0.066890455782413,
    372: 0.014816547743976,
    376: 0.014262833632529,
    420: 0.025462191551924,
    425: 0.047252278774977,
}
"""Landmark → weight, from MediaPipe's `geometry_pipeline_metadata_landmarks.pbtxt` (Apache-2.0)."""

# The metadata is a protobuf message. Its few fields are read here, so that no generated classes are needed. Field
# numbers of MediaPipe's GeometryPipelineMetadata, Mesh3d and WeightedLandmarkRef messages:
_METADATA_MESH, _METADATA_BASIS = 1, 2
_MESH_VERTICES, _MESH_INDICES = 3, 4
_BASIS_LANDMARK, _BASIS_WEIGHT = 1, 2
_FLOATS_PER_VERTEX = 5  # x, y, z and the texture's u, v

# Wire types of protobuf's encoding (protobuf.dev/programming-guides/encoding).
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True)
class CanonicalFace:
    """A face in canonical space, and the weight of each of its points in the fit of the head pose."""

    name: Literal["mediapipe", "mean"]
    vertices: np.ndarray
    """`[468, 3]` float64, cm."""
    weights: np.ndarray
    """`[468]` float64, not negative; most are 0."""
    triangles: np.ndarray | None = None
    """`[T, 3]` int64 vertex numbers of MediaPipe's mesh topology; None when unknown."""

    def __post_init__(self) -> None:
        if self.vertices.shape != (NUM_VERTICES, 3) or self.weights.shape != (NUM_VERTICES,):
            raise ValueError(
                f"canonical face has vertices {self.vertices.shape} and weights {self.weights.shape}, "
                f"must be ({NUM_VERTICES}, 3) and ({NUM_VERTICES},)"
            )
        if not np.isfinite(self.vertices).all() or self.weights.min() < 0 or np.count_nonzero(self.weights) < 3:
            raise ValueError("canonical face must have finite vertices and at least 3 points of positive weight")
        if self.triangles is not None and not 0 <= self.triangles.min() <= self.triangles.max() < NUM_VERTICES:
            raise ValueError(f"canonical face has a triangle beyond its {NUM_VERTICES} vertices")


def canonical_face(geometry_metadata: bytes | None) -> CanonicalFace:
    """The canonical face of a landmark model.

    Args:
        geometry_metadata: `geometry_pipeline_metadata_landmarks.binarypb` of a Face Landmarker bundle; None for a
            model that brings none, which gets `mean_face`.

    Raises:
        ValueError: The bytes are not such a file.
    """
    return mean_face() if geometry_metadata is None else _parse_metadata(geometry_metadata)


@cache
def mean_face() -> CanonicalFace:
    """The project's own canonical face: the mean metric mesh of real clips, with MediaPipe's weights."""
    with resources.files("talkinghead.geometry").joinpath(MEAN_FACE_FILE).open("rb") as file, np.load(file) as content:
        vertices = content["vertices"].astype(np.float64)
    weights = np.zeros(NUM_VERTICES)
    weights[list(PROCRUSTES_WEIGHTS)] = list(PROCRUSTES_WEIGHTS.values())
    # The cached face is shared by all callers.
    vertices.setflags(write=False)
    weights.setflags(write=False)
    return CanonicalFace(name="mean", vertices=vertices, weights=weights)


def _parse_metadata(data: bytes) -> CanonicalFace:
    """The face in MediaPipe's `geometry_pipeline_metadata_landmarks.binarypb`."""
    floats: list[float] = []
    indices: list[int] = []
    weights = np.zeros(NUM_VERTICES)
    try:
        for field, value in _fields(data):
            if field == _METADATA_MESH:
                # The canonical mesh. Repeated numbers may come packed or one by one, so they are collected.
                for mesh_field, item in _fields(_bytes(value)):
                    if mesh_field == _MESH_VERTICES:
                        floats.extend(_floats(_bytes(item)))
                    elif mesh_field == _MESH_INDICES:
                        indices.extend(_varints(item))
            elif field == _METADATA_BASIS:
                # One landmark of the Procrustes fit with its weight; this field repeats.
                point = dict(_fields(_bytes(value)))
                (landmark,) = _varints(point[_BASIS_LANDMARK])
                (weights[landmark],) = _floats(_bytes(point[_BASIS_WEIGHT]))
        vertices = np.array(floats).reshape(-1, _FLOATS_PER_VERTEX)[:, :3]  # [468, 3], texture coordinates dropped
        triangles = np.array(indices, dtype=np.int64).reshape(-1, 3)
        return CanonicalFace(
            name="mediapipe", vertices=vertices.copy(), weights=weights, triangles=triangles if len(triangles) else None
        )
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError(
            f"the face geometry metadata ({len(data)} bytes) is not MediaPipe's "
            f"geometry_pipeline_metadata_landmarks.binarypb: {error}"
        ) from error


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message, in order: number and value (fixed-width and nested values as bytes)."""
    at = 0
    while at < len(data):
        # A tag is the field's number and, in its low three bits, the wire type.
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field {tag >> 3} reaches beyond the end")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of variable length at byte `at`, and the position after it."""
    value = shift = 0
    while True:
        # Seven bits a byte, lowest first; a set top bit means that more follow.
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("an integer where a message or a float is expected")
    return value


def _floats(item: bytes) -> tuple[float, ...]:
    """One float, or a packed list of them."""
    return struct.unpack(f"<{len(item) // 4}f", item)


def _varints(item: int | bytes) -> list[int]:
    """One integer, or a packed list of them."""
    if isinstance(item, int):
        return [item]
    values, at = [], 0
    while at < len(item):
        value, at = _varint(item, at)
        values.append(value)
    return values
