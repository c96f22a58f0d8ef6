from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.camera import project, transform
from talkinghead.geometry.pose import matrix_from_pose

Golden = Callable[[str], dict[str, np.ndarray]]


def test_golden_reprojections(golden: Golden) -> None:
    data = golden("geometry")
    for mesh, matrix, size, points, landmarks in zip(
        data["lmks3d"], data["trans_mat"], data["size_wh"], data["reproject"], data["lmks"], strict=True
    ):
        width, height = map(int, size)
        np.testing.assert_allclose(project(mesh, matrix, width, height, compat=True), points, atol=1e-9)
        # Without the depth factor the image is the landmarks themselves, up to float32 rounding of the golden mesh.
        np.testing.assert_allclose(project(mesh, matrix, width, height), landmarks[:468, :2] * size, atol=5e-3)


def test_golden_projections(golden: Golden) -> None:
    data = golden("geometry")
    for case in (f"proj{number}" for number in range(4)):
        index, size = int(data[f"{case}.index"]), data[f"{case}.size_wh"]
        mesh = data["lmks3d"][index] + data[f"{case}.offset"].astype(np.float64)
        matrix = data["trans_mat"][index].astype(np.float64) @ matrix_from_pose(data[f"{case}.pose6d"])
        np.testing.assert_allclose(
            project(mesh, matrix, int(size[0]), int(size[1]), compat=True), data[f"{case}.points"], atol=1e-4
        )
    size = data["projT.size_wh"]
    found = project(
        data["lmks3d"][int(data["projT.mesh_index"])],
        data["trans_mat"][data["projT.trans_index"]],
        int(size[0]),
        int(size[1]),
        compat=True,
    )
    np.testing.assert_allclose(found, data["projT.points"], atol=1e-4)


@given(st.integers(16, 4000), st.integers(16, 4000), st.floats(5, 500))
def test_camera(width: int, height: int, distance: float) -> None:
    """The field of view is the height of the image; the axis hits its middle; pixels are square."""
    half = distance * np.tan(np.radians(63 / 2))
    points = np.array([[0, 0, 0], [0, half, 0], [0, -half, 0], [half, 0, 0], [1, 1, 0]])
    at = matrix_from_pose(np.array([0, 0, 0, 0, 0, -distance]))
    found = project(points, at, width, height)
    middle = np.array([width / 2, height / 2])
    np.testing.assert_allclose(found[0], middle, atol=1e-9)
    np.testing.assert_allclose(found[1:3], [[width / 2, 0], [width / 2, height]], atol=1e-9 * height)
    np.testing.assert_allclose(found[3], middle + np.array([height / 2, 0]), atol=1e-9 * height)
    right, up = (found[4] - middle) * (1, -1)
    assert right == pytest.approx(up)


def test_broadcasting_and_missing_frames() -> None:
    rng = np.random.default_rng(1)
    mesh, pose = rng.normal(size=(5, 7, 3)), np.array([[3, 4, 5, 0.5, -1, -40.0]]) + rng.normal(size=(5, 6))
    matrix = matrix_from_pose(pose)
    one_by_one = [project(m, t, 300, 200) for m, t in zip(mesh, matrix, strict=True)]
    np.testing.assert_allclose(project(mesh, matrix, 300, 200), one_by_one, atol=1e-9)
    matrix[2] = np.nan
    found = project(mesh, matrix, 300, 200)
    assert np.isnan(found[2]).all() and np.isfinite(np.delete(found, 2, axis=0)).all()
    np.testing.assert_allclose(transform(mesh[0], np.eye(4)), mesh[0])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="behind the camera"):
        project(np.zeros((468, 3)), np.eye(4), 512, 512)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        project(np.zeros((468, 3)), np.eye(4), 512, 0)
    with pytest.raises(ValueError, match="must be"):
        project(np.zeros((468, 2)), np.eye(4), 512, 512)
