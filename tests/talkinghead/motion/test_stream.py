"""A motion in parts: the same frames in order, and errors where a driver does not keep its word."""

from __future__ import annotations

import numpy as np
import pytest

from talkinghead.geometry.canonical import mean_face
from talkinghead.motion.motion import Motion
from talkinghead.motion.stream import MotionStream
from tests.support.motions import motion_about


def some(frames: int) -> Motion:
    mesh = np.repeat(mean_face().vertices[None].astype(np.float32), frames, axis=0)
    mesh[:, 0, 0] += np.arange(frames)
    pose = np.eye(4)
    pose[2, 3] = -30
    return motion_about(mesh, np.zeros((frames, 6)), reference_pose_matrix=pose, width=8, height=8)


def test_parts_are_the_whole_and_know_their_place() -> None:
    motion = some(11)
    stream = MotionStream.of(motion, 4)
    places: list[tuple[int, int]] = []

    def note(part: Motion, first: int) -> Motion:
        places.append((first, len(part)))
        return part

    whole = stream.each(note).whole()
    assert places == [(0, 4), (4, 4), (8, 3)] and stream.count == 11
    assert np.array_equal(whole.meshes(), motion.meshes())


def test_a_driver_that_does_not_keep_its_word_is_named() -> None:
    motion = some(6)
    with pytest.raises(ValueError, match="ends after 6 of 7 frames"):
        list(MotionStream(iter([motion]), count=7, fps=motion.fps))
    with pytest.raises(ValueError, match="was to have 5 frames"):
        list(MotionStream(iter([motion]), count=5, fps=motion.fps))
    with pytest.raises(ValueError, match="at 30 per second"):
        list(MotionStream(iter([motion]), count=6, fps=30))
    with pytest.raises(ValueError, match="at least one frame"):
        MotionStream(iter([]), count=0, fps=25)
