"""A mouth shut in silence: it is at rest there, nothing else moves, and frames with speech keep their bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.geometry.face_regions import BROWS, EYES, LIPS, LOWER_FACE, lip_gap
from talkinghead.motion.at_rest import lips_closed, mean_expression
from talkinghead.motion.compose import SEAM_S
from talkinghead.motion.motion import Motion
from talkinghead.motion.silence import LEAST_SILENCE_S, mouth_shut, silence_share, still_in_silence
from tests.support.motions import FACE, a_motion

UPPER = [*EYES, *BROWS]


def active_but(frames: int, *silent: tuple[int, int]) -> np.ndarray:
    active = np.ones(frames, bool)
    for begin, end in silent:
        active[begin:end] = False
    return active


@pytest.mark.parametrize("fps", [25.0, 30.0])
def test_the_mouth_is_at_rest_in_silence(fps: float) -> None:
    motion = a_motion(120, 3, fps=fps, eyes=True)
    active = active_but(120, (40, 80))
    still = still_in_silence(motion, active, FACE)
    seam = round(SEAM_S * fps) + 2
    middle = slice(40 + seam, 80 - seam)
    # The lips: at rest to the bit of float32, where the motion had them a centimetre apart.
    assert lip_gap(motion.meshes()[middle]).max() > 0.4
    rest = lip_gap(lips_closed(FACE))
    np.testing.assert_allclose(lip_gap(still.meshes()[middle]), rest, atol=0.01)
    np.testing.assert_array_equal(
        still.meshes()[middle][:, list(LIPS)], lips_closed(FACE)[None, list(LIPS)].repeat(80 - 40 - 2 * seam, axis=0)
    )
    # Every frame with speech keeps every bit, and so do eyes, brows and pose everywhere.
    np.testing.assert_array_equal(still.meshes()[active], motion.meshes()[active])
    np.testing.assert_array_equal(still.meshes()[:, UPPER], motion.meshes()[:, UPPER])
    np.testing.assert_array_equal(still.pose_matrix, motion.pose_matrix)
    assert still.eyes is motion.eyes
    # Closing and opening take several frames: no frame differs from the next by much more than it did before.
    largest = np.abs(np.diff(motion.meshes(), axis=0)).max()
    assert np.abs(np.diff(still.meshes(), axis=0)).max() < largest + 1.5 * 0.8 / (SEAM_S * fps)


def test_short_silence_is_left_alone() -> None:
    motion = a_motion(60, 1)
    short = math.ceil(LEAST_SILENCE_S * 25) - 1
    assert still_in_silence(motion, active_but(60, (20, 20 + short)), FACE) is motion
    assert still_in_silence(motion, active_but(60, (20, 21 + short)), FACE) is not motion


def test_the_mouth_is_shut_at_both_ends() -> None:
    """Silence at the beginning and the end has no seam there."""
    share = silence_share(active_but(100, (0, 30), (70, 100)), 25)
    assert share[0] == share[-1] == 1 and share[15] == share[85] == 1
    assert (share[30:70] == 0).all()
    assert (silence_share(np.zeros(40, bool), 25) == 1).all()


@given(seed=st.integers(0, 50), fps=st.sampled_from([12.5, 25.0, 30.0, 60.0]))
def test_speech_is_never_touched(seed: int, fps: float) -> None:
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random(12) < 0.5, rng.integers(1, 40, 12))
    share = silence_share(active, fps)
    assert ((share >= 0) & (share <= 1)).all() and (share[active] == 0).all()
    # Smooth: within a frame it goes no further than a smoothstep over the seam does.
    window = 2 * round(SEAM_S * fps / 2) + 1
    assert np.abs(np.diff(share)).max(initial=0) <= 1.5 / window + 1e-9


def test_a_part_is_a_part_of_the_whole() -> None:
    motion, active = a_motion(90, 2), active_but(90, (30, 70))
    share = silence_share(active, motion.fps)
    whole = mouth_shut(motion, share, FACE)
    parts = [mouth_shut(motion.part(at, 15), share[at : at + 15], FACE) for at in range(0, 90, 15)]
    np.testing.assert_array_equal(Motion.join(parts).meshes(), whole.meshes())


def test_an_open_mouth_at_rest_is_closed() -> None:
    """A portrait that shows its teeth does not show them in silence."""
    opened = FACE.copy()
    opened[list(LOWER_FACE)] += np.float32(1.5) * mean_expression().opening[list(LOWER_FACE)]
    assert lip_gap(opened) > 1
    still = still_in_silence(a_motion(60, 1), np.zeros(60, bool), opened)
    assert lip_gap(still.meshes()).max() < mean_expression().lip_gap_at_rest + 0.05


def test_frames_must_fit() -> None:
    with pytest.raises(ValueError, match="speech activity of 59 frames does not fit a motion of 60"):
        still_in_silence(a_motion(60), np.zeros(59, bool), FACE)


def test_frames_without_a_face_stay_without() -> None:
    motion = a_motion(60, 1, gaps=(20,))
    still = still_in_silence(motion, np.zeros(60, bool), FACE)
    assert np.isfinite(still.meshes()[still.valid]).all() and still.valid.sum() >= 59
