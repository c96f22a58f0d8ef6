"""Motion as a clip's annotation holds it: the true motion that trainings and evaluations compare with.

The camera is that of the clip, and the face is at rest where the clip shows it most relaxed (`neutral`), unless the
speaker's own neutral mesh is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.timebase import FPS

MOTION_COLUMNS = ("mesh", "pose_matrix", "blendshapes", "valid")
"""Annotation columns that hold a clip's motion."""


def annotated_motion(
    columns: Mapping[str, np.ndarray], *, width: int, height: int, neutral: np.ndarray | None = None
) -> Motion:
    """Motion of an annotated clip, or of some of its frames, at 25 fps.

    Args:
        columns: Annotation columns `MOTION_COLUMNS` of the same frames, see `talkinghead.annotation`.
        width: Width of the clip in pixels.
        height: Height of the clip in pixels.
        neutral: Speaker's neutral mesh, `[468, 3]` cm; None: estimated from these frames.

    Raises:
        ValueError: No frame has a face; or shapes that do not fit each other, or a frame that is marked as valid and
            holds no motion.
    """
    valid = columns["valid"].astype(bool)
    if not valid.any():
        raise ValueError("no frame has a face, so there is no motion")
    if neutral is None:
        neutral = neutral_mesh(columns["mesh"], columns["blendshapes"], valid).mesh
    return Motion(
        pose_matrix=columns["pose_matrix"].astype(np.float64),
        neutral=neutral.astype(np.float32, copy=False),
        mesh=columns["mesh"].astype(np.float32, copy=False),
        valid=valid,
        fps=FPS,
        width=width,
        height=height,
    )
