"""Motion out of annotation columns: the same numbers, whose face, and clips that hold none."""

from __future__ import annotations

import numpy as np
import pytest

from talkinghead.annotation import COLUMN
from talkinghead.motion.annotated import MOTION_COLUMNS, annotated_motion
from talkinghead.motion.neutral import neutral_mesh
from tests.support.motions import FACE, a_motion


def columns(frames: int, gaps: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    motion = a_motion(frames, gaps=gaps)
    scores = np.random.default_rng(0).random((frames, 52), np.float32)
    scores[~motion.valid] = np.nan
    return {
        "mesh": motion.meshes(),
        "pose_matrix": motion.pose_matrix.astype(np.float32),
        "blendshapes": scores,
        "valid": motion.valid,
    }


def test_the_annotations_numbers_stay() -> None:
    assert set(MOTION_COLUMNS) <= set(COLUMN)
    given = columns(30, gaps=(4,))
    motion = annotated_motion(given, width=640, height=480)
    np.testing.assert_array_equal(motion.meshes(), given["mesh"])
    np.testing.assert_array_equal(motion.pose_matrix, given["pose_matrix"])
    np.testing.assert_array_equal(motion.valid, given["valid"])
    assert (motion.fps, motion.width, motion.height) == (25, 640, 480)
    wanted = neutral_mesh(given["mesh"], given["blendshapes"], given["valid"]).mesh
    np.testing.assert_array_equal(motion.neutral, wanted)
    known = annotated_motion(given, width=640, height=480, neutral=FACE.astype(np.float64))
    np.testing.assert_array_equal(known.neutral, FACE)


def test_no_motion() -> None:
    given = columns(4)
    with pytest.raises(ValueError, match="no frame has a face"):
        annotated_motion(given | {"valid": np.zeros(4, bool)}, width=64, height=64)
    with pytest.raises(ValueError, match="pose_matrix holds values that are not finite"):
        annotated_motion(given | {"pose_matrix": np.full((4, 4, 4), np.nan)}, width=64, height=64)
