"""Reader of the arrays that `infer landmarks` writes next to its video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LandmarkFile:
    """Arrays of F frames as they were written, and their frame rate."""

    mesh: np.ndarray
    pose: np.ndarray
    pose_matrix: np.ndarray
    landmarks: np.ndarray
    fps: float

    def __len__(self) -> int:
        return len(self.mesh)


def read_landmark_file(path: Path) -> LandmarkFile:
    """Arrays as they were written."""
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in ("mesh", "pose", "pose_matrix", "landmarks")}
        return LandmarkFile(**arrays, fps=float(content["fps"]))
