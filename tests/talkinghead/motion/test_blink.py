"""Blinks: keyed, in the rate asked for, the same at every frame rate and length; lids that shut and brows that stay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import BROWS, eye_opening
from talkinghead.motion.blink import (
    EYELIDS,
    HELD_S,
    OPEN_S,
    SHUT_S,
    blink_closure,
    blink_times,
    close_eyes,
    with_blinks,
)
from talkinghead.motion.motion import Motion
from tests.support.motions import a_motion

FACE = mean_face().vertices.astype(np.float32)


@settings(max_examples=25)
@given(rate=st.floats(1, 60), seed=st.integers(0, 50))
def test_as_many_as_asked_for_and_never_two_at_once(rate: float, seed: int) -> None:
    times = np.array(list(itertools.islice(blink_times(rate, seed), 400)))
    gaps = np.diff(times)
    assert 0 <= times[0] <= 60 / rate and gaps.min() > SHUT_S + HELD_S + OPEN_S
    assert gaps.mean() == pytest.approx(60 / rate, rel=0.15)
    if rate < 30:
        assert gaps.std() > 0.3 * gaps.mean(), "not a metronome"


@given(seed=st.integers(0, 50), frames=st.integers(1, 200))
def test_longer_videos_begin_the_same(seed: int, frames: int) -> None:
    long = blink_closure(300, 25, rate=20, seed=seed)
    assert np.array_equal(blink_closure(frames, 25, rate=20, seed=seed), long[:frames])
    assert long.min() >= 0 and long.max() <= 1


def test_every_frame_rate_shows_the_same_blinks() -> None:
    fine = blink_closure(25 * 20 * 4, 100, rate=20, seed=3)
    coarse = blink_closure(25 * 20, 25, rate=20, seed=3)
    at = np.interp((np.arange(500) + 0.5) / 25, (np.arange(2000) + 0.5) / 100, fine)
    np.testing.assert_allclose(coarse, at, atol=0.02)
    assert 4 <= (np.diff((coarse > 0.9).astype(int)) == 1).sum() <= 10 and (coarse == 0).mean() > 0.7
    assert not np.array_equal(coarse, blink_closure(500, 25, rate=20, seed=4))


def test_eyes_shut_and_the_rest_stays() -> None:
    mesh = np.repeat(FACE[None], 3, axis=0)
    found = close_eyes(mesh, np.array([0, 0.5, 1]))
    assert found.dtype == np.float32 and np.array_equal(found[0], FACE) and np.array_equal(mesh[2], FACE), "a copy"
    shares = eye_opening(found) / eye_opening(FACE)
    np.testing.assert_allclose(shares, [1, 0.55, 0.1], atol=0.02)
    moved = np.flatnonzero(np.abs(found[2] - FACE).max(axis=1) > 1e-6)
    assert not set(moved) & set(BROWS) and len(moved) == 2 * 21
    for upper, lower in EYELIDS:
        low, high = np.abs(found[2] - FACE)[lower, 1], np.abs(found[2] - FACE)[upper, 1]
        assert (high > 5 * low).all(), "the upper lid does it"
        assert (FACE[upper, 1] > FACE[lower, 1]).all(), "each vertex of an upper lid is above its partner"
    shut = close_eyes(found[2:], np.ones(1))
    assert np.abs(shut - found[2]).max() < 0.15, "shut eyes stay shut"


@pytest.mark.parametrize("rate", [0, -1, 61, float("nan")])
def test_rates_that_nobody_has(rate: float) -> None:
    with pytest.raises(ValueError, match="per minute"):
        next(blink_times(rate, 0))


def test_blinks_of_a_motion() -> None:
    """On top of what its eyes do, in meshes and in numbers; the mouth and the head do not know."""
    motion = a_motion(50, eyes=True)
    found, closure = with_blinks(motion, rate=60, seed=1), blink_closure(50, 25, rate=60, seed=1)
    np.testing.assert_array_equal(found.meshes(), close_eyes(motion.meshes(), closure))
    assert found.eyes is not None and motion.eyes is not None and closure.max() > 0.9
    np.testing.assert_allclose(1 - found.eyes, (1 - motion.eyes) * (1 - closure[:, None]), atol=1e-6)
    np.testing.assert_array_equal(found.eyes[closure == 0], motion.eyes[closure == 0])
    np.testing.assert_array_equal(found.meshes()[:, 14], motion.meshes()[:, 14])
    assert found.pose_matrix is motion.pose_matrix and with_blinks(a_motion(5), rate=60, seed=1).eyes is None
    parts = [with_blinks(motion.part(first, 10), rate=60, seed=1, first=first) for first in range(0, 50, 10)]
    np.testing.assert_array_equal(Motion.join(parts).meshes(), found.meshes())
    with pytest.raises(ValueError, match="61"):
        with_blinks(motion, rate=61, seed=1)
