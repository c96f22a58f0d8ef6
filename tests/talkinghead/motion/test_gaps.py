"""Frames without a face: bridged in a straight line, or held; nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.gaps import bridged, gaps, held, held_frames, interpolated
from talkinghead.motion.motion import Motion
from tests.support.motions import FACE, a_motion

FACES = st.lists(st.booleans(), min_size=1, max_size=60).filter(any).map(np.array)


def steady(valid: np.ndarray) -> Motion:
    """A head that turns by half a degree, and eyes that shut, from frame to frame."""
    frames = np.arange(len(valid), dtype=np.float64)
    pose = np.stack([0 * frames, 0.5 * frames, 0 * frames, frames, 0 * frames, -40 + 0 * frames], axis=1)
    mesh = FACE + frames[:, None, None].astype(np.float32)
    eyes = (frames / 100).astype(np.float32)[:, None].repeat(2, axis=1)
    pose[~valid], mesh[~valid], eyes[~valid] = np.nan, np.nan, np.nan
    return Motion(
        pose_matrix=matrix_from_pose(pose),
        neutral=FACE,
        mesh=mesh,
        eyes=eyes,
        valid=valid,
        fps=25.0,
        width=64,
        height=64,
    )


@given(FACES)
def test_bridged_in_a_straight_line(valid: np.ndarray) -> None:
    """Between faces by time, at the ends still; frames with a face keep their meshes to the bit."""
    motion = steady(valid)
    found = bridged(motion)
    seen = np.flatnonzero(valid)
    wanted = np.clip(np.arange(len(valid)), seen[0], seen[-1])
    assert found.valid.all() and found.eyes is not None
    np.testing.assert_allclose(found.meshes(), FACE + wanted[:, None, None], atol=1e-4)
    np.testing.assert_allclose(found.pose[:, 1], 0.5 * wanted, atol=1e-9)
    np.testing.assert_allclose(found.eyes[:, 0], wanted / 100, atol=1e-6)
    np.testing.assert_array_equal(found.meshes()[valid], motion.meshes()[valid])
    assert (bridged(motion) is motion) == valid.all()


@given(FACES)
def test_held_frames_repeat_the_last_face(valid: np.ndarray) -> None:
    motion = steady(valid)
    found, frames = held(motion), held_frames(valid)
    assert valid[frames].all() and (frames[valid] == np.flatnonzero(valid)).all()
    assert (np.diff(frames) >= 0).all() and (frames <= np.maximum(np.arange(len(valid)), valid.argmax())).all()
    np.testing.assert_array_equal(found.meshes(), motion.meshes()[frames])
    np.testing.assert_array_equal(found.pose_matrix, motion.pose_matrix[frames])
    assert np.array_equal(found.valid, valid), "they still do not count"


@given(FACES)
def test_gaps_are_the_frames_without_a_face(valid: np.ndarray) -> None:
    found = gaps(valid)
    inside = np.zeros(len(valid), bool)
    for begin, end in found:
        assert 0 <= begin < end <= len(valid)
        inside[begin:end] = True
    assert np.array_equal(inside, ~valid)
    assert all(one[1] < other[0] for one, other in pairwise(found))


def test_nothing_to_go_by() -> None:
    nobody = np.zeros(3, bool)
    blind = replace(a_motion(3), valid=nobody)
    for fill in (bridged, held):
        with pytest.raises(ValueError, match="no frame has a face"):
            fill(blind)
    with pytest.raises(ValueError, match="no frame has a face"):
        interpolated(np.zeros(3), nobody)
