"""Pairs: every conversion in order with its loss, and the reason where two do not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from talkinghead.geometry.canonical import mean_face
from talkinghead.motion.motion import Coefficients, Motion
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import HEAD, LANDMARKS, MESHES, FrameSize, MotionKind, pair


@dataclass
class Gives:
    gives: MotionKind
    name: str = "giver"


@dataclass
class Takes:
    takes: tuple[MotionKind, ...]
    name: str = "taker"


class Corner:
    """Space of one number: how far all vertices are moved to the right."""

    id = "corner"

    def encode(self, mesh: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        return (mesh - neutral)[:, :1, 0].astype(np.float32)

    def decode(self, values: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        return (neutral + values[:, :, None] * np.array([1, 0, 0], np.float32)).astype(np.float32)


def gives(space: str, fps: float | None = None) -> Gives:
    return Gives(MotionKind(space=space, fps=fps))


def takes(*spaces: str, fps: float | None = None) -> Takes:
    return Takes(tuple(MotionKind(space=space, fps=fps) for space in spaces))


def motion(frames: int) -> Motion:
    neutral = mean_face().vertices.astype(np.float32)
    return Motion(
        pose_matrix=np.repeat(np.eye(4)[None], frames, axis=0),
        neutral=neutral,
        coefficients=Coefficients(space="corner", values=np.ones((frames, 1), np.float32)),
        valid=np.ones(frames, bool),
        fps=25,
        width=8,
        height=8,
    )


def test_nothing_lies_between_two_that_speak_alike() -> None:
    assert pair(gives("own"), takes("own")).conversions == ()
    assert pair(gives(MESHES), takes(MESHES)).fps == 25


def test_rates_and_landmarks_are_steps_with_a_loss() -> None:
    found = pair(gives(MESHES, 25), takes(LANDMARKS, fps=30))
    assert found.fps == 30 and len(found.conversions) == 2
    assert "from 25 to 30" in found.conversions[0].name and all(step.loss for step in found.conversions)
    assert pair(gives(MESHES, 25), takes(LANDMARKS, fps=30), fps=25).fps == 25
    assert len(pair(gives(MESHES), takes(LANDMARKS, fps=30)).conversions) == 1, "a driver of any rate"


def test_known_spaces_are_decoded_and_encoded() -> None:
    decoded = pair(gives("corner"), takes(LANDMARKS), spaces=[Corner()])
    assert [step.name.split()[0] for step in decoded.conversions] == ["meshes", "landmarks"]
    moved = decoded.convert(MotionStream.of(motion(5), 2)).whole()
    np.testing.assert_allclose(moved.meshes()[:, :, 0] - moved.neutral[:, 0], 1, atol=1e-6)
    encoded = pair(gives(MESHES), takes("corner"), spaces=[Corner()])
    again = encoded.convert(MotionStream.of(moved, 3)).whole()
    assert again.coefficients is not None
    np.testing.assert_allclose(again.coefficients.values, 1, atol=1e-6)


def test_what_does_not_fit_says_why() -> None:
    with pytest.raises(ValueError, match=r"giver gives head.*taker takes landmarks: another driver must.*--pose giver"):
        pair(gives(HEAD), takes(LANDMARKS))
    with pytest.raises(ValueError, match="coefficients of bfm-deep3d cannot be turned into meshes here"):
        pair(gives("bfm-deep3d"), takes(MESHES, "other"))
    with pytest.raises(ValueError, match="takes other: no conversion"):
        pair(gives(MESHES), takes("other"))


def test_the_first_kind_that_can_be_had_is_taken() -> None:
    assert pair(gives("own"), takes(MESHES, "own")).conversions == ()


def test_sizes() -> None:
    FrameSize(step=8).check(64, 32)
    with pytest.raises(ValueError, match="multiples of 8"):
        FrameSize(step=8).check(60, 32)
