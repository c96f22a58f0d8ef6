"""A face's expression on another face: its own motion again, in proportion, with eyes that shut and lips that meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LOWER_FACE, eye_opening, lip_gap, mouth_width
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.motion.blink import EYELIDS, close_eyes
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.retarget import (
    close_mouth,
    shape_ratio,
    transfer,
    transfer_expression,
    transfer_pose,
    uncrossed,
)

Golden = Callable[[str], dict[str, np.ndarray]]
FACE = mean_face().vertices
LIPS = 13, 14


def jaw(opening: np.ndarray) -> np.ndarray:
    """The mean face, whose lips are apart, with its jaw down by `opening` cm: `[F, 468, 3]`."""
    mesh = np.repeat(FACE[None], len(opening), axis=0)
    below = [vertex for vertex in LOWER_FACE if FACE[vertex, 1] <= FACE[14, 1]]
    mesh[:, below, 1] -= opening[:, None]
    return mesh


SHUT = jaw(np.array([-0.75]))[0]


def moving(frames: int, seed: int = 0, strength: float = 0.1) -> np.ndarray:
    """Smooth random motion of the mean face, `[frames, 468, 3]`."""
    draws = np.random.default_rng(seed).standard_normal((frames, 4, 3))
    basis = np.stack([np.ones(468), *FACE.T / 8])
    return FACE + strength * np.einsum("fkd,kn->fnd", draws, basis)


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_a_face_driven_by_itself_gives_its_motion(seed: int) -> None:
    mesh = moving(5, seed)
    np.testing.assert_allclose(transfer_expression(mesh, mesh[2], mesh[2]), mesh, atol=1e-9)


def test_the_neutral_face_gives_the_reference(golden: Golden) -> None:
    """For any two shapes, so the reference's face shape is kept."""
    data = golden("smoothing")
    neutral, reference = data["src.lmks3d"][0], data["ref.lmks3d"]
    found = transfer_expression(neutral[None], neutral, reference)[0]
    np.testing.assert_allclose(found, reference, atol=1e-9)


def test_motion_grows_with_the_face() -> None:
    """A face that is wider everywhere has wider smiles, and not higher ones."""
    wider = FACE * (1.2, 1.0, 1.0)
    ratio = shape_ratio(FACE, wider)
    assert np.median(ratio[:, 0]) == pytest.approx(1.17, abs=0.03)
    np.testing.assert_allclose(ratio[:, 1:], 1, atol=0.02)
    np.testing.assert_array_equal(shape_ratio(FACE, FACE), 1)
    smile = np.repeat(FACE[None], 2, axis=0)
    smile[1, [61, 291], 0] *= 1.2
    found = transfer_expression(smile, FACE, wider)
    grown = (mouth_width(found[1]) - mouth_width(found[0])) / (mouth_width(smile[1]) - mouth_width(smile[0]))
    assert 1.08 < grown < 1.2


@pytest.mark.parametrize("height", [0.4, 0.7, 1.0, 1.6])
def test_eyes_shut_as_far_as_they_are_shut(height: float) -> None:
    """Smaller or larger eyes: the opening, as a share of the neutral one, is the driving face's."""
    reference = FACE.copy()
    for upper, lower in EYELIDS:
        middle = (reference[upper] + reference[lower]) / 2
        reference[upper] = middle + height * (reference[upper] - middle)
        reference[lower] = middle + height * (reference[lower] - middle)
    driving = close_eyes(np.repeat(FACE[None], 4, axis=0), np.array([0.0, 0.3, 0.7, 1.0]))
    shares = eye_opening(driving) / eye_opening(FACE)
    found = transfer_expression(driving, FACE, reference)
    np.testing.assert_allclose(eye_opening(found) / eye_opening(reference), shares, atol=0.02)


def test_lips_do_not_pass_through_each_other() -> None:
    """A driving mouth that rests open and then shuts, on a mouth that rests shut."""
    opened = SHUT.copy()
    opened[list(LIPS)] += [[0, 0.2, 0], [0, -0.2, 0]]
    found = transfer_expression(SHUT[None], opened, SHUT)[0]
    gap = SHUT[LIPS[0], 1] - SHUT[LIPS[1], 1]
    assert found[LIPS[0], 1] - found[LIPS[1], 1] == pytest.approx(min(gap, 0), abs=1e-9)
    middle = SHUT[list(LIPS), 1].mean()
    assert found[list(LIPS), 1].mean() == pytest.approx(middle, abs=0.02), "they meet in the middle"


def test_frames_without_a_face_stay_so() -> None:
    mesh = moving(4)
    mesh[1] = np.nan
    found = transfer_expression(mesh, FACE, FACE)
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2, 3]]).all()


def test_an_open_mouth_is_closed_as_the_driving_mouth_closes() -> None:
    driving = jaw(np.linspace(-0.75, 0.75, 20))
    reference = jaw(np.array([0.0]))[0] * (1.05, 1, 1)
    rest = float(lip_gap(SHUT))
    found = close_mouth(reference, driving, driving[0])
    assert lip_gap(reference) > rest + 0.4 and lip_gap(found) == pytest.approx(rest, abs=0.08)
    upper = np.setdiff1d(np.arange(468), LOWER_FACE)
    np.testing.assert_array_equal(found[upper], reference[upper])
    assert lip_gap(transfer_expression(driving[:1], driving[0], found))[0] == pytest.approx(rest, abs=0.08)


def test_a_shut_mouth_and_a_still_one_change_nothing() -> None:
    driving = jaw(np.linspace(-0.75, 0.75, 20))
    np.testing.assert_array_equal(close_mouth(SHUT, driving, driving[0]), SHUT)
    still = np.repeat(SHUT[None], 5, axis=0)
    np.testing.assert_array_equal(close_mouth(FACE, still, SHUT), FACE)
    np.testing.assert_array_equal(close_mouth(FACE, np.full((2, 468, 3), np.nan), SHUT), FACE)


def test_refused() -> None:
    with pytest.raises(ValueError, match="is wanted"):
        transfer_expression(FACE, FACE, FACE)
    with pytest.raises(ValueError, match="not finite"):
        transfer_expression(FACE[None], FACE * np.nan, FACE)


POSES = np.array([10, 20, -5, 1, 2, -40.0]) + np.random.default_rng(2).normal(0, 3, (21, 6))
REFERENCE = matrix_from_pose(np.array([-3.0, 8, 2, 0, 1, -33]))


def test_relative_motion_begins_at_the_reference() -> None:
    """A head that rests is the reference's own pose, and motion about the rest is the same motion about that."""
    rest = matrix_from_pose(np.median(POSES, axis=0))
    found = transfer_pose(matrix_from_pose(POSES), REFERENCE, "relative")
    placed = REFERENCE @ matrix_from_pose(found)
    for frame in range(len(POSES)):
        np.testing.assert_allclose(rest @ matrix_from_pose(found[frame]), matrix_from_pose(POSES[frame]), atol=1e-9)
    still = transfer_pose(np.repeat(rest[None], 3, axis=0), REFERENCE, "relative")
    np.testing.assert_allclose(still, 0, atol=1e-9)
    assert np.abs(pose_from_matrix(placed)[:, 3:] - REFERENCE[:3, 3]).max() < 15


def test_absolute_motion_has_the_driving_angles() -> None:
    found = REFERENCE @ matrix_from_pose(transfer_pose(matrix_from_pose(POSES), REFERENCE, "absolute"))
    np.testing.assert_allclose(pose_from_matrix(found)[:, :3], POSES[:, :3], atol=1e-9)
    moved = pose_from_matrix(found)[:, 3:] - REFERENCE[:3, 3]
    np.testing.assert_allclose(moved, POSES[:, 3:] - np.median(POSES[:, 3:], axis=0), atol=1e-9)


def test_gain_of_the_angles(golden: Golden) -> None:
    data = golden("smoothing")
    mesh, matrix, scores = data["src.lmks3d"], data["src.trans_mat"], data["src.blendshapes"]
    # The goldens leave `_neutral` out.
    scores = np.concatenate((np.zeros((len(scores), 52 - scores.shape[1]), scores.dtype), scores), axis=1)
    given: dict = {"reference_mesh": data["ref.lmks3d"], "reference_pose_matrix": data["ref.trans_mat"], "window": 1}
    neutral = neutral_mesh(mesh, scores, np.ones(len(mesh), bool)).mesh
    plain = transfer(mesh, matrix, neutral, **given)
    doubled = transfer(mesh, matrix, neutral, pose_gain=2.0, **given)
    np.testing.assert_allclose(doubled.pose[:, :3], 2 * plain.pose[:, :3], atol=1e-9)
    np.testing.assert_array_equal(doubled.pose[:, 3:], plain.pose[:, 3:])
    frontal = transfer(mesh, matrix, neutral, pose_mode="absolute", pose_gain=0.0, **given)
    placed = data["ref.trans_mat"] @ matrix_from_pose(frontal.pose)
    np.testing.assert_allclose(pose_from_matrix(placed)[:, :3], 0, atol=1e-3)
    with pytest.raises(ValueError, match="no frame"):
        transfer(np.full((2, 468, 3), np.nan), np.full((2, 4, 4), np.nan), neutral, **given)


def test_an_exaggerated_face_does_not_pass_through_itself() -> None:
    shut = close_eyes(SHUT[None], np.ones(1))
    exaggerated = uncrossed(FACE + 3 * (shut - FACE), FACE, shut)
    for upper, lower in (*EYELIDS, ([13], [14])):
        least = min(0, (shut[0, upper, 1] - shut[0, lower, 1]).min())
        assert (exaggerated[0, upper, 1] - exaggerated[0, lower, 1]).min() >= least - 1e-9
    open_wide = FACE + 1.5 * (jaw(np.array([0.5])) - FACE)
    np.testing.assert_array_equal(uncrossed(open_wide.copy(), FACE), open_wide)
