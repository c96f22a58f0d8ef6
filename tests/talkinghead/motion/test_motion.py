"""Motion: parts join to the whole bit for bit, conversions lose what they state, and what is no motion is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.camera import FOCAL, project
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.motion import Coefficients, Motion
from talkinghead.motion.rest_pose import placed_pose
from tests.support.motions import AHEAD, FACE, a_motion, motion_about


class Plane:
    """A space for tests: meshes are the neutral mesh plus a combination of K orthonormal offsets."""

    def __init__(self, rank: int, seed: int = 0) -> None:
        axes = np.random.default_rng(seed).normal(size=(468 * 3, rank))
        self.axes = np.linalg.qr(axes)[0].T  # [K, 1404]
        self.id = f"plane:{rank}-{seed}"

    def encode(self, mesh: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        """See `CoefficientSpace`."""
        return (mesh - neutral).reshape(len(mesh), -1) @ self.axes.T

    def decode(self, values: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        """See `CoefficientSpace`."""
        return neutral + (values @ self.axes).reshape(len(values), 468, 3)


def with_everything(frames: int, gaps: tuple[int, ...] = ()) -> Motion:
    """Meshes, eyes, and coefficients of a family's own with a pose and extras."""
    motion = a_motion(frames, gaps=gaps, eyes=True)
    rng = np.random.default_rng(1)
    coefficients = Coefficients(
        space="bfm-deep3d",
        values=rng.normal(size=(frames, 64)).astype(np.float32),
        pose=rng.normal(size=(frames, 6)).astype(np.float32),
        extras={"deltas": rng.normal(size=(frames, 15, 3)).astype(np.float32)},
    )
    return replace(motion, coefficients=coefficients)


def arrays(motion: Motion) -> dict[str, np.ndarray]:
    """All that changes from frame to frame."""
    found = {"pose_matrix": motion.pose_matrix, "valid": motion.valid}
    found |= {name: array for name in ("mesh", "eyes") if (array := getattr(motion, name)) is not None}
    return found if motion.coefficients is None else found | motion.coefficients.arrays()


def assert_equal(one: Motion, other: Motion) -> None:
    """Equal bit for bit, NaN counting as equal."""
    assert arrays(one).keys() == arrays(other).keys()
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(array, arrays(other)[name], err_msg=name)
    assert np.array_equal(one.neutral, other.neutral)
    assert (one.fps, one.width, one.height) == (other.fps, other.width, other.height)


# --- in time ----------------------------------------------------------------------------------------------------------


@given(cuts=st.sets(st.integers(1, 29)), whole=st.booleans())
def test_parts_join_to_the_whole(cuts: set[int], whole: bool) -> None:
    motion = with_everything(30, gaps=(0, 7)) if whole else a_motion(30, gaps=(0, 7))
    edges = [0, *sorted(cuts), 30]
    parts = [motion.part(begin, end - begin) for begin, end in pairwise(edges)]
    assert [len(part) for part in parts] == np.diff(edges).tolist()
    assert_equal(Motion.join(parts), motion)
    assert np.shares_memory(parts[0].meshes(), motion.meshes()), "parts copy nothing"


def test_parts_of_other_motions_do_not_join() -> None:
    one = a_motion(4)
    assert one.mesh is not None
    other = {
        "another face": replace(one, neutral=FACE + np.float32(0.1)),
        "its fps is 30": replace(one, fps=30.0),
        "its width is 64": replace(one, width=64),
        "only one of them has mesh": replace(one, mesh=None),
        "only one of them has eyes": a_motion(4, eyes=True),
    }
    for said, part in other.items():
        with pytest.raises(ValueError, match=f"part 1 is no part of the same motion: .*{said}"):
            Motion.join([one, part])
    whole = with_everything(4)
    assert whole.coefficients is not None
    for said, change in {
        "are of plane, not of bfm": {"space": "plane"},
        "hold other arrays": {"pose": None},
    }.items():
        with pytest.raises(ValueError, match=said):
            Motion.join([whole, replace(whole, coefficients=replace(whole.coefficients, **change))])
    with pytest.raises(ValueError, match="at least one part"):
        Motion.join([])
    for first, count in ((-1, 2), (0, 0), (3, 2)):
        with pytest.raises(ValueError, match="a motion of 4 frames has no part"):
            one.part(first, count)


def test_everything_changes_in_time() -> None:
    """Poses as numbers, each array in its own type; a frame is valid where the change had only valid ones."""
    motion = with_everything(6, gaps=(2,))
    later = motion.over_time(lambda values: np.concatenate((values[:1], values[:-1])), fps=50.0)
    assert len(later) == 6 and later.fps == 50 and later.valid.tolist() == [True, True, True, False, True, True]
    for name, array in arrays(later).items():
        assert array.dtype == arrays(motion)[name].dtype, name
        np.testing.assert_allclose(array[1:], arrays(motion)[name][:-1], atol=1e-9, err_msg=name)


# --- conversions ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "goldens" / "geometry.npz", allow_pickle=False) as content:
        return dict(content)


@pytest.mark.parametrize("case", range(4))
def test_compat_landmarks_equal_aniportrait(golden: dict[str, np.ndarray], case: int) -> None:
    frame = int(golden[f"proj{case}.index"])
    width, height = (int(side) for side in golden[f"proj{case}.size_wh"])
    motion = motion_about(
        golden["lmks3d"][frame].astype(np.float32) + golden[f"proj{case}.offset"],
        golden[f"proj{case}.pose6d"],
        reference_pose_matrix=golden["trans_mat"][frame],
        width=width,
        height=height,
    )
    pixels = motion.landmarks(compat=True) * (width, height)
    assert np.abs(pixels - golden[f"proj{case}.points"]).max() < 3e-4, "1e-4 px and what float32 landmarks lose"
    exact = motion.landmarks() * (width, height)
    assert 1e-3 < np.abs(pixels - exact).max() < 0.07


def test_a_portrait_in_its_own_pose_is_the_portrait(golden: dict[str, np.ndarray]) -> None:
    for frame in range(0, len(golden["lmks"]), 5):
        width, height = (int(side) for side in golden["size_wh"][frame])
        motion = motion_about(
            golden["lmks3d"][frame][None],
            np.zeros((1, 6)),
            reference_pose_matrix=golden["trans_mat"][frame],
            width=width,
            height=height,
        )
        away = (motion.landmarks()[0] - golden["lmks"][frame, :468, :2]) * (width, height)
        assert np.abs(away).max() < 0.02


def test_landmarks_of_parts_are_parts_of_the_landmarks() -> None:
    """Long motion is projected piece by piece, with the bits of single frames."""
    motion = a_motion(1201, gaps=(3,))
    landmarks = motion.landmarks()
    assert landmarks.shape == (1201, 468, 2) and landmarks.dtype == np.float32 and np.isnan(landmarks[3]).all()
    for frame in (0, 499, 500, 1200):
        assert np.array_equal(motion.part(frame, 1).landmarks()[0], landmarks[frame])


@given(seed=st.integers(0, 50))
def test_landmarks_lose_what_float32_loses(seed: int) -> None:
    """At most 6e-8 of the image: 3e-5 px at 512."""
    motion = a_motion(3, seed)
    exact = project(motion.meshes(), motion.pose_matrix, motion.width, motion.height) / (motion.width, motion.height)
    assert exact.min() > -1 and exact.max() < 2, "near the image; farther away more is lost"
    assert np.abs(motion.landmarks() - exact).max() <= 6e-8
    np.testing.assert_array_equal(motion.landmarks(), exact.astype(np.float32))


def measured(motion: Motion) -> Motion:
    """What the annotation measures in images of a motion: mesh and pose of landmarks with their depth.

    The depth of a landmark is that of the point over the face's distance, in widths of the image.
    """
    camera = motion.meshes() @ np.swapaxes(motion.pose_matrix[:, :3, :3], 1, 2) + motion.pose_matrix[:, None, :3, 3]
    distance = -camera[..., 2].mean(axis=1)[:, None]
    depth = (-camera[..., 2] - distance) / distance * FOCAL * motion.height / 2 / motion.width
    landmarks = np.concatenate((motion.landmarks().astype(np.float64), depth[..., None]), axis=2)
    mesh, matrix = metric_mesh(landmarks, motion.width, motion.height, mean_face())
    return replace(motion, mesh=mesh.astype(np.float32), pose_matrix=matrix)


@given(seed=st.integers(0, 50), frames=st.integers(1, 9))
def test_landmarks_give_a_measured_motion_back(seed: int, frames: int) -> None:
    """The points to 1e-4 px, always. Which part of it is pose, and which expression, is the measure's: an open jaw
    tilts the pose. A motion that was measured comes back to 0.001 degrees and cm."""
    motion = a_motion(frames, seed)
    once = measured(motion)
    twice = measured(once)
    pixels = [found.landmarks() * (motion.width, motion.height) for found in (motion, once, twice)]
    assert max(np.abs(pixels[0] - found).max() for found in pixels[1:]) < 1e-4
    np.testing.assert_allclose(twice.pose, once.pose, atol=1e-3)
    np.testing.assert_allclose(twice.meshes(), once.meshes(), atol=1e-3)


@given(pose=st.lists(st.tuples(*[st.floats(-60, 60)] * 3, *[st.floats(-5, 5)] * 3), min_size=1, max_size=5))
def test_poses_come_back(pose: list[tuple[float, ...]]) -> None:
    """Six numbers, about a reference or in the camera, and matrices: 1e-9 degrees and cm."""
    given_pose = np.array(pose)
    motion = Motion(
        pose_matrix=placed_pose(given_pose, AHEAD),
        neutral=FACE,
        valid=np.ones(len(pose), bool),
        fps=25.0,
        width=64,
        height=64,
    )
    np.testing.assert_array_equal(motion.pose_matrix, AHEAD @ matrix_from_pose(given_pose))
    np.testing.assert_allclose(motion.pose_about(AHEAD), given_pose, atol=1e-9)
    np.testing.assert_allclose(motion.with_pose(motion.pose).pose_matrix, motion.pose_matrix, atol=1e-9)
    # The scale of a measured matrix is all that numbers lose.
    scale = 1 + 1e-5
    measured_pose = replace(motion, pose_matrix=motion.pose_matrix * np.array([[scale] * 3 + [1]]))
    np.testing.assert_allclose(measured_pose.with_pose(measured_pose.pose).pose_matrix, motion.pose_matrix, atol=1e-9)


@given(rank=st.sampled_from([8, 64]), gaps=st.sampled_from([(), (0, 4)]))
def test_meshes_and_coefficients(rank: int, gaps: tuple[int, ...]) -> None:
    """A mesh of the space comes back to 1e-5 cm; of another mesh, the nearest one in the space, and that for good."""
    space, motion = Plane(rank), a_motion(6, gaps=gaps)
    encoded = motion.with_coefficients(space)
    assert encoded.mesh is motion.mesh and encoded.coefficients is not None
    assert encoded.coefficients.space == space.id and encoded.coefficients.values.shape == (6, rank)
    nearest = replace(encoded, mesh=None).with_mesh(space)
    there, meshes = motion.valid, nearest.meshes()
    assert np.isnan(meshes[~there]).all()
    lost = (motion.meshes()[there] - meshes[there]).reshape(there.sum(), -1)
    assert np.abs(lost @ space.axes.T).max() < 1e-4, "what is lost lies outside of the space"
    again = nearest.with_coefficients(space).with_mesh(space)
    np.testing.assert_allclose(again.meshes(), meshes, atol=1e-5)


def test_conversions_that_cannot_be() -> None:
    still = replace(a_motion(3), mesh=None)
    with pytest.raises(ValueError, match="moves the head only"):
        still.landmarks()
    with pytest.raises(ValueError, match="no coefficients to make meshes of"):
        still.with_mesh(Plane(4))
    family = replace(with_everything(3), mesh=None)
    with pytest.raises(ValueError, match="no meshes but coefficients of the space bfm-deep3d: decode them first"):
        family.with_coefficients(Plane(4))
    with pytest.raises(ValueError, match="of the space bfm-deep3d cannot be decoded by plane:4-0"):
        family.with_mesh(Plane(4))
    with pytest.raises(ValueError, match="bfm-deep3d hold the head's pose"):
        family.with_pose(np.zeros((3, 6)))
    assert with_everything(3).with_meshes(a_motion(3).meshes()).coefficients is None


# --- what is no motion ------------------------------------------------------------------------------------------------


def test_refused() -> None:
    motion = a_motion(3, gaps=(1,))
    mesh = motion.meshes()
    broken = mesh.copy()
    broken[2, 5, 1] = np.inf
    for said, changes in {
        r"mesh is \(3, 468, 3\) float32, not \(2, 468, 3\)": {"mesh": mesh[:2]},
        "mesh is .* not .* float64": {"mesh": mesh.astype(np.float64)},
        "mesh holds values that are not finite": {"mesh": broken},
        "pose_matrix is .* float64, not .* float32": {"pose_matrix": motion.pose_matrix.astype(np.float32)},
        "pose_matrix holds values": {"valid": np.ones(3, bool)},
        "neutral is": {"neutral": FACE[:5]},
        "neutral holds values": {"neutral": np.full_like(FACE, np.nan)},
        r"eyes is \(3, 2\)": {"eyes": np.zeros(3, np.float32)},
        "valid is .* bool": {"valid": np.ones(3)},
        "at least one frame": {"valid": np.ones(0, bool)},
        "frame rate above 0": {"fps": 0.0},
        "at least 1 x 1": {"height": 0},
        r"coefficients' values is \(3, 4\)": {
            "coefficients": Coefficients(space="s", values=np.zeros((2, 4), np.float32))
        },
        "coefficients' extras lips is": {
            "coefficients": Coefficients(
                space="s", values=np.zeros((3, 4), np.float32), extras={"lips": np.zeros((1, 2), np.float32)}
            )
        },
    }.items():
        with pytest.raises(ValueError, match=said):
            replace(motion, **changes)
    away = placed_pose(np.array([[0, 0, 0, 0, 0, 90.0]] * 3), AHEAD)
    with pytest.raises(ValueError, match="behind the camera"):
        replace(a_motion(3), pose_matrix=away).landmarks()
