"""A moving face placed where the reference's head is: AniPortrait's numbers, and still faces that stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.landmark_motion import place


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "goldens" / "geometry.npz", allow_pickle=False) as content:
        return dict(content)


@pytest.mark.parametrize("case", range(4))
def test_compat_equals_aniportrait(golden: dict[str, np.ndarray], case: int) -> None:
    frame = int(golden[f"proj{case}.index"])
    width, height = (int(side) for side in golden[f"proj{case}.size_wh"])
    motion = place(
        golden["lmks3d"][frame].astype(np.float32) + golden[f"proj{case}.offset"],
        golden[f"proj{case}.pose6d"],
        reference_pose_matrix=golden["trans_mat"][frame],
        width=width,
        height=height,
        fps=30,
        compat=True,
    )
    pixels = motion.landmarks * (width, height)
    assert np.abs(pixels - golden[f"proj{case}.points"]).max() < 3e-4, "1e-4 px and what float32 landmarks lose"


def test_the_reference_in_its_own_pose_is_the_portrait(golden: dict[str, np.ndarray]) -> None:
    for frame in range(0, len(golden["lmks"]), 5):
        width, height = (int(side) for side in golden["size_wh"][frame])
        motion = place(
            golden["lmks3d"][frame][None],
            np.zeros((1, 6)),
            reference_pose_matrix=golden["trans_mat"][frame],
            width=width,
            height=height,
            fps=25,
        )
        away = (motion.landmarks[0] - golden["lmks"][frame, :468, :2]) * (width, height)
        assert np.abs(away).max() < 0.02


def test_poses_are_in_the_reference_axes() -> None:
    """Convention: pose_matrix = reference · M(pose), and long motion is placed piece by piece."""
    rng = np.random.default_rng(0)
    reference = matrix_from_pose(np.array([10.0, -20.0, 5.0, 1.0, 2.0, -40.0]))
    pose = rng.uniform(-1, 1, (1201, 6)) * (20, 20, 20, 1, 1, 1)
    mesh = rng.uniform(-5, 5, (1, 468, 3)).astype(np.float32).repeat(1201, axis=0)
    motion = place(mesh, pose, reference_pose_matrix=reference, width=640, height=480, fps=25)
    assert len(motion) == 1201 and motion.landmarks.dtype == np.float32
    for t in (0, 499, 500, 1200):
        np.testing.assert_allclose(motion.pose_matrix[t], reference @ matrix_from_pose(pose[t]), atol=1e-9)
        alone = place(mesh[t][None], pose[t][None], reference_pose_matrix=reference, width=640, height=480, fps=25)
        assert np.array_equal(alone.landmarks[0], motion.landmarks[t])


def test_refused() -> None:
    still = {"reference_pose_matrix": matrix_from_pose(np.array([0, 0, 0, 0, 0, -30.0])), "width": 8, "height": 8}
    with pytest.raises(ValueError, match="must be"):
        place(np.zeros((2, 468, 3)), np.zeros((1, 6)), fps=25, **still)
    with pytest.raises(ValueError, match="not finite"):
        place(np.full((1, 468, 3), np.nan), np.zeros((1, 6)), fps=25, **still)
    with pytest.raises(ValueError, match="behind the camera"):
        place(np.zeros((1, 468, 3)), np.array([[0, 0, 0, 0, 0, 60.0]]), fps=25, **still)
