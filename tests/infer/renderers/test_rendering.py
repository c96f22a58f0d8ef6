"""What every rendering keeps to, whichever renderer it is: sizes, a frame for each of the motion, plain facts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.renderers.landmarks import LandmarkRendering
from infer.renderers.other import OtherRendering
from infer.renderers.rendering import Rendering
from infer.request import AnimateRequest
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.landmark_renderer import DrawnSize, LandmarkRenderer
from talkinghead.pipelines.protocols import MESHES, MotionKind, pair
from talkinghead.pipelines.still_driver import StillDriver
from talkinghead.provenance import pretty_json
from tests.support.drawn_portrait import drawn_portrait

PORTRAIT = drawn_portrait(96, 64)
UNUSED: Any = None


def quiet(*_: Any) -> None:
    """A progress bar that shows nothing."""


def request(**options: Any) -> AnimateRequest:
    return AnimateRequest(reference=Path("r.png"), output=Path("o.mp4"), **options)


def made_of(name: str) -> Rendering:
    if name == LandmarkRendering.name:
        return LandmarkRendering(request(width=128))
    return OtherRendering(LandmarkRenderer(), DrawnSize(width=48, height=32), request())


@pytest.mark.parametrize("name", ["landmarks", "other"])
def test_as_many_frames_as_the_motion_of_the_size_that_is_said(name: str) -> None:
    made = made_of(name)
    assert made.find() is None
    made.meet(MotionKind(space=MESHES))
    pairing = pair(StillDriver(), made)
    stage = made.stage(PORTRAIT, UNUSED)
    assert stage is PORTRAIT and made.load() == {} and made.seconds() is None
    motion = StillDriver().move(stage, 0.4, fps=pairing.fps)
    shown: Iterator[np.ndarray] = made.frames(made.begin(pairing.convert(motion), pairing, quiet), quiet)  # pyright: ignore[reportArgumentType]
    frames = list(shown)
    width, height = made.size
    assert made.size == made.drawn_size == ((128, 84) if name == "landmarks" else (48, 32))
    assert len(frames) == 10 and all(frame.shape == (height, width, 3) for frame in frames)
    assert all(frame.dtype == np.uint8 and np.array_equal(frame, frames[0]) for frame in frames) and frames[0].any()
    assert pretty_json(made.describe()), "plain enough for a sidecar"
    assert made.estimated == {} and not made.compat


@pytest.mark.parametrize("name", ["landmarks", "other"])
def test_frames_come_while_the_motion_is_made(name: str) -> None:
    """Part by part: when the first frame is there, the second part was not asked for."""
    made = made_of(name)
    made.stage(PORTRAIT, UNUSED)
    asked: list[int] = []
    whole = StillDriver().move(PORTRAIT, 4.0).whole()
    motion = MotionStream.of(whole, 25).each(lambda part, first: (asked.append(first), part)[1])
    pairing = pair(StillDriver(), made)
    frames = iter(made.frames(made.begin(motion, pairing, quiet), quiet))  # pyright: ignore[reportArgumentType]
    next(frames)
    assert asked == [0]
    assert sum(1 for _ in frames) == 99 and asked == [0, 25, 50, 75]
