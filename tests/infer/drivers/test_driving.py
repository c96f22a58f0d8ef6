"""Edits of motion, whatever drives: part by part those of the whole, also the mouth that is shut in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from infer.drivers.driving import edited
from infer.request import AnimateRequest
from talkinghead.geometry.face_regions import LIPS, lip_gap
from talkinghead.models.speech.activity import PIECE
from talkinghead.models.speech.pauses import frames_of_speech
from talkinghead.motion.at_rest import lips_closed
from talkinghead.motion.motion import Motion
from talkinghead.motion.silence import silence_share
from talkinghead.motion.stream import MotionStream
from tests.support.motions import FACE, a_motion


def asked(**options: Any) -> AnimateRequest:
    return AnimateRequest(reference=Path("r"), output=Path("o.mp4"), driver="still", **options)


def in_parts(motion: Motion, size: int, request: AnimateRequest, silence: np.ndarray | None) -> Motion:
    stream = MotionStream.of(motion, size)
    return stream.each(lambda part, first: edited(part, request, first=first, silence=silence)).whole()


def pause(frames: int) -> np.ndarray:
    """Share of a mouth that is shut, for a sound of which the middle third is no speech."""
    pieces = round(frames / 25 * 16_000 / PIECE)
    probability = np.ones(pieces)
    probability[pieces // 3 : 2 * pieces // 3] = 0.02
    return silence_share(frames_of_speech(probability, 25, frames), 25)


@given(size=st.integers(1, 90), gain=st.sampled_from([0.0, 1.0, 1.7]), blink=st.sampled_from(["none", "60"]))
def test_parts_are_edited_as_the_whole(size: int, gain: float, blink: str) -> None:
    motion, silence = a_motion(90, 3), pause(90)
    request = asked(lips_gain=gain, brows_gain=1.3, blink=blink)
    whole = edited(motion, request, silence=silence)
    np.testing.assert_array_equal(in_parts(motion, size, request, silence).meshes(), whole.meshes())


def test_nothing_asked_for_changes_nothing() -> None:
    motion = a_motion(20)
    assert edited(motion, asked()) is motion
    assert edited(motion, asked(), silence=np.zeros(20)) is motion


def test_silence_shuts_the_mouth_after_the_gains() -> None:
    """A mouth that is twice as lively is as shut as any; frames of speech are those of the gain alone."""
    motion, silence = a_motion(90, 3), pause(90)
    request = asked(lips_gain=2.0)
    still, lively = edited(motion, request, silence=silence), edited(motion, request)
    shut, spoken = silence == 1, silence == 0
    assert shut.sum() > 10 and spoken.sum() > 40
    closed = lips_closed(FACE)
    np.testing.assert_array_equal(still.meshes()[shut][:, list(LIPS)], closed[None, list(LIPS)].repeat(shut.sum(), 0))
    np.testing.assert_array_equal(still.meshes()[spoken], lively.meshes()[spoken])
    assert lip_gap(still.meshes()[shut]).max() < lip_gap(lively.meshes()).max()
