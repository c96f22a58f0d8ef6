"""Goldens, MediaPipe's own test data, and the official canonical face."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from talkinghead.geometry.canonical import CanonicalFace, canonical_face

METADATA = "geometry_pipeline_metadata_landmarks.binarypb"


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """Loads one golden file by name: arrays that AniPortrait's own code computed."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(shared / "goldens" / f"{name}.npz", allow_pickle=False) as content:
            return dict(content)

    return load


@pytest.fixture(scope="session")
def mediapipe_data(shared: Path) -> Path:
    """MediaPipe's test data."""
    return shared / "metadata" / "mediapipe"


@pytest.fixture(scope="session")
def task_file(shared: Path) -> Path:
    """The official model bundle."""
    return shared / "models" / "face_landmarker.task"


@pytest.fixture(scope="session")
def geometry_metadata(task_file: Path) -> bytes:
    """The geometry metadata inside the bundle."""
    return zipfile.ZipFile(task_file).read(METADATA)


@pytest.fixture(scope="session")
def official_face(geometry_metadata: bytes) -> CanonicalFace:
    """MediaPipe's canonical face."""
    return canonical_face(geometry_metadata)
