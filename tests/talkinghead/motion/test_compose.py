"""Composed motion: with itself it is itself; mouth, pose and eyes stay those of their drivers; seams are smooth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.face_regions import BROWS, EYES, LIPS, LOWER_FACE, lip_gap
from talkinghead.motion.compose import SEAM_S, compose, crossfade, seam
from talkinghead.motion.motion import Coefficients, Motion
from talkinghead.motion.resampling import played
from tests.support.motions import FACE, a_motion

UPPER = [*EYES, *BROWS]


def assert_equal(one: Motion, other: Motion) -> None:
    for name in ("mesh", "pose_matrix", "eyes", "valid"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(first, second, err_msg=name)
    assert (one.fps, one.width, one.height) == (other.fps, other.width, other.height)


@given(frames=st.integers(1, 12), seed=st.integers(0, 30), eyes=st.booleans(), gap=st.booleans())
def test_a_motion_with_itself_is_itself(frames: int, seed: int, eyes: bool, gap: bool) -> None:
    """Bit for bit, also for a copy of it; and so is one faded into itself, but for rounding of the pose."""
    motion = a_motion(frames, seed, eyes=eyes, gaps=(0,) if gap and frames > 1 else ())
    copy = replace(motion, mesh=motion.meshes().copy(), pose_matrix=motion.pose_matrix.copy())
    for other in (motion, copy):
        assert_equal(compose(mouth=motion, pose=other, eyes=other), motion)
    assert compose(mouth=motion) is motion
    share = np.random.default_rng(seed).random(frames)
    faded = crossfade(motion, copy, share)
    np.testing.assert_array_equal(faded.meshes(), motion.meshes())
    np.testing.assert_allclose(faded.pose_matrix, motion.pose_matrix, atol=1e-9)


def test_each_gives_its_own() -> None:
    mouth, pose, eyes = (a_motion(20, seed, eyes=seed > 1) for seed in (1, 2, 3))
    found = compose(mouth=mouth, pose=pose, eyes=eyes)
    np.testing.assert_array_equal(found.meshes()[:, list(LOWER_FACE)], mouth.meshes()[:, list(LOWER_FACE)])
    np.testing.assert_array_equal(found.meshes()[:, UPPER], eyes.meshes()[:, UPPER])
    np.testing.assert_array_equal(found.pose_matrix, pose.pose_matrix)
    assert found.eyes is not None and eyes.eyes is not None
    np.testing.assert_array_equal(found.eyes, eyes.eyes)
    # Between the two, every vertex lies on the way from one to the other.
    low, high = np.minimum(mouth.meshes(), eyes.meshes()), np.maximum(mouth.meshes(), eyes.meshes())
    assert (found.meshes() >= low - 1e-5).all() and (found.meshes() <= high + 1e-5).all()


@given(fps=st.sampled_from([12.5, 25.0, 30.0]), frames=st.integers(2, 40))
def test_rates_and_lengths_become_the_mouths(fps: float, frames: int) -> None:
    """A pose of another rate and length is played to and fro, without a jump."""
    mouth, pose = a_motion(30, 1), a_motion(frames, 2, fps=fps)
    found = compose(mouth=mouth, pose=replace(pose, mesh=None))
    assert len(found) == 30 and found.fps == 25 and found.valid.all()
    np.testing.assert_array_equal(found.meshes(), mouth.meshes())
    np.testing.assert_array_equal(found.pose_matrix, played(pose, 25.0, 30).pose_matrix)
    steps, own = np.abs(np.diff(found.pose, axis=0)), np.abs(np.diff(pose.pose, axis=0))
    assert (steps.max(axis=0) <= own.max(axis=0) * fps / 25 + 1e-6).all()


def test_frames_without_one_of_them_are_not_valid() -> None:
    mouth, pose, eyes = a_motion(9, 1, gaps=(0,)), a_motion(9, 2, gaps=(3,)), a_motion(9, 3, gaps=(5,))
    found = compose(mouth=mouth, pose=pose, eyes=eyes)
    assert np.flatnonzero(~found.valid).tolist() == [0, 3, 5]


def test_coefficients_stay_where_the_face_is_their_own() -> None:
    values = np.zeros((4, 2), np.float32)
    mouth = replace(a_motion(4, 1), coefficients=Coefficients(space="s", values=values))
    assert compose(mouth=mouth, pose=a_motion(4, 2)).coefficients is mouth.coefficients
    assert compose(mouth=mouth, eyes=a_motion(4, 2)).coefficients is None
    posed = replace(mouth, coefficients=Coefficients(space="s", values=values, pose=np.zeros((4, 6), np.float32)))
    with pytest.raises(ValueError, match="s hold the head's pose"):
        compose(mouth=posed, pose=a_motion(4, 2))


def test_refused() -> None:
    mouth, other = a_motion(4, 1), a_motion(4, 2)
    with pytest.raises(ValueError, match="of two faces"):
        compose(mouth=mouth, eyes=replace(other, neutral=FACE + np.float32(0.1)))
    with pytest.raises(ValueError, match="640x480 and 512x480 pixels are not of the same portrait"):
        compose(mouth=mouth, pose=replace(other, width=512))
    with pytest.raises(ValueError, match="moves the head only"):
        compose(mouth=mouth, eyes=replace(other, mesh=None))
    for share in (np.zeros(3), np.full(4, 1.5), np.full(4, np.nan)):
        with pytest.raises(ValueError, match="a share in 0 … 1 is wanted for each of 4 frames"):
            crossfade(mouth, other, share)


def test_a_mouth_that_shuts_in_silence() -> None:
    """Speech where it is spoken, the other motion in silence, and no jump between."""
    speech, still = a_motion(60, 1, eyes=True), a_motion(7, 2, eyes=True)
    still = still.with_meshes(np.repeat(FACE[None], 7, axis=0))
    silent = np.zeros(60, bool)
    silent[20:40] = True
    share = seam(silent, 25.0)
    found, other = crossfade(speech, still, share), played(still, 25.0, 60)
    half = round(SEAM_S * 25 / 2)
    for frames, whose in ((slice(0, 20 - half), speech), (slice(20 + half, 40 - half), other)):
        np.testing.assert_array_equal(found.meshes()[frames], whose.meshes()[frames])
        np.testing.assert_array_equal(found.pose_matrix[frames], whose.pose_matrix[frames])
    assert (np.diff(share[:30]) >= 0).all() and 0 < share[20] < 1
    steps = np.abs(np.diff(lip_gap(found.meshes())))
    most = np.abs(np.diff(lip_gap(speech.meshes()))).max() + np.ptp(lip_gap(speech.meshes())) * np.diff(share).max()
    assert steps.max() <= most
    assert set(LIPS) <= set(LOWER_FACE)


def test_a_gap_counts_where_it_is_seen() -> None:
    one, other = a_motion(9, 1, gaps=(1, 7)), a_motion(9, 2, gaps=(2, 8))
    found = crossfade(one, other, np.array([0, 0, 0, 0, 0.5, 1, 1, 1, 1]))
    assert np.flatnonzero(~found.valid).tolist() == [1, 8]
    half = crossfade(one, other, np.full(9, 0.5))
    assert np.flatnonzero(~half.valid).tolist() == [1, 2, 7, 8]
    np.testing.assert_allclose(half.meshes()[4], (one.meshes()[4] + other.meshes()[4]) / 2, atol=1e-5)
    np.testing.assert_allclose(half.pose[4], (one.pose[4] + other.pose[4]) / 2, atol=1e-9)
