"""Goldens, and MediaPipe's own test data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """Loader of a golden file by name: arrays that AniPortrait's own code computed."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(shared / "goldens" / f"{name}.npz", allow_pickle=False) as content:
            return dict(content)

    return load


@pytest.fixture(scope="session")
def mediapipe_data(shared: Path) -> Path:
    """MediaPipe's test data."""
    return shared / "metadata" / "mediapipe"
