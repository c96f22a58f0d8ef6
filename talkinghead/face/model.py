"""The face model: the networks that find a face and its landmarks, in one of two releases, checked by hash.

A network file runs in the interpreter of TFLite, which is native code made for files of friends. So no other file than
the two pinned releases is ever opened, wherever it lies: its hash is compared before anything looks into it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from talkinghead.files.foreign import read_limited
from talkinghead.provenance import hash_bytes

OFFICIAL_FILE = "face_landmarker.task"
OFFICIAL_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
"""Hash of MediaPipe's Face Landmarker bundle, float16, version 1."""

FALLBACK_SHA256 = {
    "face_detection_short_range.tflite": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    "face_landmark.tflite": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
}
"""Hashes of the two networks inside the `mediapipe==0.10.21` wheel, by file name."""

MODEL_BYTES = 32 << 20
"""Most bytes of a model file; the bundle has under 4 MB."""

# The bundle is a ZIP archive; role → member.
_BUNDLE_MEMBERS = {
    "detector": "face_detector.tflite",
    "landmarks": "face_landmarks_detector.tflite",
    "blendshapes": "face_blendshapes.tflite",
    "geometry": "geometry_pipeline_metadata_landmarks.binarypb",
}

_REPLACE = "It is damaged or another version: delete it and run `make models`, or put the right file in its place"

ModelName = Literal["face_landmarker_v2", "face_mesh_2020"]


@dataclass(frozen=True, kw_only=True)
class FaceModel:
    """One release of the face networks, loaded. Small enough (under 4 MB) to travel between processes.

    `face_landmarker_v2` is the official bundle; `face_mesh_2020` the older pair of detector and 468-point network that
    a Python wheel of MediaPipe carries: no iris, no blendshapes, no canonical face.
    """

    name: ModelName
    files: Mapping[str, str]
    """Role (`bundle`, or `detector` and `landmarks`) → sha256 of the file."""
    detector: bytes = field(repr=False)
    """Face detector, a TFLite file: BlazeFace short range, 128x128 pixels."""
    landmarks: bytes = field(repr=False)
    """Landmark network, a TFLite file: 256x256 pixels → 478 points, or 192x192 → 468 points."""
    num_landmarks: int
    """Points of the landmark network: 478, or 468 without the iris."""
    path: Path
    """The bundle, or the folder of the two networks, from which the model was read."""
    blendshapes: bytes | None = field(default=None, repr=False)
    """Blendshape network, a TFLite file: 146 points → 52 coefficients."""
    geometry_metadata: bytes | None = field(default=None, repr=False)
    """Serialised `mediapipe.face_geometry.GeometryPipelineMetadata`: canonical mesh, weights, input source."""

    def __post_init__(self) -> None:
        if self.num_landmarks not in (468, 478):
            raise ValueError(f"a face model has 468 or 478 landmarks, not {self.num_landmarks}")
        if not self.files:
            raise ValueError("a face model names the files it was read from")

    @property
    def task_file(self) -> Path | None:
        """The bundle on disk, which MediaPipe Tasks opens itself; None for the fallback."""
        return self.path if "bundle" in self.files else None

    @property
    def detector_sha256(self) -> str:
        """Hash of the detector alone: ingest does not depend on the landmark network that comes with it."""
        return hash_bytes(self.detector)

    @property
    def sha256(self) -> str:
        """Hash of the model for provenance: the file's, or a hash over the roles and hashes of several files."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        return hash_bytes("\n".join(f"{role} {digest}" for role, digest in sorted(self.files.items())).encode())


def load_official(path: Path) -> FaceModel:
    """Read the official bundle and check its hash.

    Raises:
        ValueError: The file is not the bundle to which this project is pinned.
        OSError: The file cannot be read.
    """
    data = read_limited(path, MODEL_BYTES, "face model")
    check_hash(path, data, OFFICIAL_SHA256)
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        parts = {role: bundle.read(member) for role, member in _BUNDLE_MEMBERS.items()}
    return FaceModel(
        name="face_landmarker_v2",
        files={"bundle": OFFICIAL_SHA256},
        detector=parts["detector"],
        landmarks=parts["landmarks"],
        blendshapes=parts["blendshapes"],
        geometry_metadata=parts["geometry"],
        num_landmarks=478,
        path=path,
    )


def load_fallback(folder: Path) -> FaceModel:
    """Read the two networks of the fallback model and check their hashes.

    Raises:
        ValueError: A file is not the network to which this project is pinned.
        OSError: A file cannot be read.
    """
    parts: dict[str, bytes] = {}
    for name, expected in FALLBACK_SHA256.items():
        parts[name] = read_limited(folder / name, MODEL_BYTES, "face model")
        check_hash(folder / name, parts[name], expected)
    detector, landmarks = FALLBACK_SHA256
    return FaceModel(
        name="face_mesh_2020",
        files={"detector": FALLBACK_SHA256[detector], "landmarks": FALLBACK_SHA256[landmarks]},
        detector=parts[detector],
        landmarks=parts[landmarks],
        num_landmarks=468,
        path=folder,
    )


def check_hash(source: Path | str, data: bytes, expected: str, remedy: str = _REPLACE) -> None:
    """Check that data has the pinned hash.

    Args:
        source: File or address from which the data was read, for the message.
        data: Content to check.
        expected: The pinned sha256.
        remedy: End of the message: what to do.

    Raises:
        ValueError: The hash is another one.
    """
    if (found := hash_bytes(data)) != expected:
        raise ValueError(f"{source} has sha256 {found} ({len(data)} bytes), expected {expected}. {remedy}")
