"""Reader of the arrays that `infer landmarks` writes next to its video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from talkinghead.motion.landmark_motion import LandmarkMotion


def read_motion(path: Path) -> LandmarkMotion:
    """Motion as it was written."""
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in ("mesh", "pose", "pose_matrix", "landmarks")}
        return LandmarkMotion(**arrays, fps=float(content["fps"]))
