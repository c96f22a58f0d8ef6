"""Gains: at rest, as it is, exaggerated; by region; and nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.face_regions import BROWS, EYES, LIPS, lip_gap
from talkinghead.motion.blink import EYELIDS, close_eyes
from talkinghead.motion.gain import expression_gain, head_gain
from talkinghead.motion.motion import Coefficients, Motion
from talkinghead.motion.regions import region_weights
from talkinghead.motion.rest_pose import clip_rest_pose
from tests.support.motions import AHEAD, FACE, a_motion

REGIONS = st.sampled_from(["lips", "brows", "all"])


@given(region=REGIONS, seed=st.integers(0, 20))
def test_one_is_the_motion_and_none_is_rest(region, seed: int) -> None:
    motion = a_motion(5, seed)
    assert expression_gain(motion, 1.0, region) is motion
    still = expression_gain(motion, 0.0, region).meshes()
    inside, outside = region_weights(region) == 1, region_weights(region) == 0
    np.testing.assert_array_equal(still[:, inside], np.broadcast_to(FACE[inside], still[:, inside].shape))
    np.testing.assert_array_equal(still[:, outside], motion.meshes()[:, outside])


def uneven(frames: int) -> Motion:
    """A motion in which every vertex moves anywhere, but lips and lids stay apart."""
    mesh = np.random.default_rng(0).normal(0, 5, (frames, 468, 3)).astype(np.float32)
    apart = [*LIPS, *EYES]
    mesh[:, apart, 1] = FACE[apart, 1]
    return a_motion(frames).with_meshes(mesh)


@given(gain=st.floats(0, 3).filter(lambda gain: gain != 1))
def test_a_whole_face_is_scaled_as_one_number_would(gain: float) -> None:
    """The arithmetic is that of one factor for all vertices, to the bit."""
    motion = uneven(2)
    found = expression_gain(motion, gain).meshes()
    np.testing.assert_array_equal(found, FACE + np.float32(gain) * (motion.meshes() - FACE))


@pytest.mark.parametrize("region", ["lips", "brows"])
def test_vertices_out_of_the_region_keep_their_bits(region) -> None:
    motion, weights = uneven(4), region_weights(region)
    found = expression_gain(motion, 1.9, region).meshes()
    np.testing.assert_array_equal(found[:, weights == 0], motion.meshes()[:, weights == 0])
    assert (found[:, weights > 0.5] != motion.meshes()[:, weights > 0.5]).any(axis=(0, 2)).all()


def test_lids_do_not_pass_through_each_other() -> None:
    shut = a_motion(1).with_meshes(close_eyes(FACE[None], np.ones(1)))
    found = expression_gain(shut, 3.0).meshes()
    for upper, lower in EYELIDS:
        least = min(0, (shut.meshes()[0, upper, 1] - shut.meshes()[0, lower, 1]).min())
        assert (found[0, upper, 1] - found[0, lower, 1]).min() >= least - 1e-6


@given(gain=st.floats(0, 2.5), seed=st.integers(0, 20))
def test_the_mouth_opens_by_the_factor_and_the_eyes_do_not_know(gain: float, seed: int) -> None:
    motion = a_motion(20, seed)
    found = expression_gain(motion, gain, "lips")
    opened, wanted = lip_gap(found.meshes()) - lip_gap(FACE), gain * (lip_gap(motion.meshes()) - lip_gap(FACE))
    np.testing.assert_allclose(opened, wanted, atol=1e-4)
    upper = [*EYES, *BROWS]
    np.testing.assert_array_equal(found.meshes()[:, upper], motion.meshes()[:, upper])
    np.testing.assert_array_equal(found.pose_matrix, motion.pose_matrix)


def test_parts_are_scaled_like_the_whole() -> None:
    motion = a_motion(12)
    for change in (lambda part: expression_gain(part, 1.7, "lips"), lambda part: head_gain(part, 0.5, AHEAD)):
        whole, joined = change(motion), Motion.join([change(motion.part(first, 4)) for first in (0, 4, 8)])
        np.testing.assert_array_equal(joined.meshes(), whole.meshes())
        np.testing.assert_array_equal(joined.pose_matrix, whole.pose_matrix)


def test_coefficients_do_not_stand_for_another_expression() -> None:
    coefficients = Coefficients(space="s", values=np.zeros((3, 2), np.float32))
    motion = replace(a_motion(3), coefficients=coefficients)
    assert expression_gain(motion, 2.0).coefficients is None
    with pytest.raises(ValueError, match="coefficients of the space s"):
        expression_gain(replace(motion, mesh=None), 2.0)
    with pytest.raises(ValueError, match="gain -1"):
        expression_gain(motion, -1)


@given(gain=st.floats(0, 2), seed=st.integers(0, 20))
def test_the_heads_angles_are_scaled_about_rest(gain: float, seed: int) -> None:
    motion = a_motion(9, seed, gaps=(4,))
    own = clip_rest_pose(motion.pose_matrix, motion.valid)
    for rest, given_rest in ((own, None), (AHEAD, AHEAD)):
        found, wanted = head_gain(motion, gain, given_rest).pose_about(rest), motion.pose_about(rest)
        np.testing.assert_allclose(found[:, :3], gain * wanted[:, :3], atol=1e-6)
        np.testing.assert_allclose(found[:, 3:], wanted[:, 3:], atol=1e-6)
    assert head_gain(motion, 1.0) is motion and head_gain(motion, gain).mesh is motion.mesh
