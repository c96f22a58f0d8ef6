"""A renderer of another package: it gets the whole portrait, its options and the seed, and its frames are marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.renderers.other import OtherRendering
from infer.request import AnimateRequest
from talkinghead.face.portrait import Portrait
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import LANDMARKS, FrameSize, MotionKind
from talkinghead.pipelines.still_driver import StillDriver
from tests.support.drawn_portrait import drawn_portrait


@dataclass
class Prepared:
    portrait: Portrait | None
    options: Any
    size: tuple[int, int]


class Noise:
    """Frames of the seed alone."""

    name = "noise"
    size = FrameSize()

    def __init__(self, *, compat: bool = False, side: int = 32) -> None:
        self.takes = (MotionKind(space=LANDMARKS, compat=compat),)
        self._side = side

    def prepare(self, portrait: Portrait | None, options: Any) -> Prepared:
        return Prepared(portrait, options, (self._side, self._side))

    def render(
        self, prepared: Prepared, motion: MotionStream, *, seed: int = 0, progress: Any = None
    ) -> Iterator[np.ndarray]:
        assert prepared.options == "the options" and prepared.portrait is not None
        random = np.random.default_rng(seed)
        for part in motion:
            yield from random.integers(0, 255, (len(part), *prepared.size, 3), np.uint8)


def made(renderer: Noise, **options: Any) -> OtherRendering:
    return OtherRendering(renderer, "the options", AnimateRequest(reference=Path("r"), output=Path("o.mp4"), **options))


def frames(**options: Any) -> list[np.ndarray]:
    rendering, portrait = made(Noise(), **options), drawn_portrait()
    unused: Any = None
    assert rendering.stage(portrait, unused) is portrait
    return list(rendering.frames(StillDriver().move(portrait, 0.2), unused))


def test_seed_and_options_reach_it() -> None:
    one, same, other = frames(seed=1), frames(seed=1), frames(seed=2)
    assert len(one) == 5 and all(map(np.array_equal, one, same)) and not np.array_equal(one[0], other[0])


def test_the_video_says_that_it_is_synthetic_unless_told_otherwise() -> None:
    note = made(Noise()).note
    assert note is not None and "trainedAlgorithmicMedia" in note.source_type
    rendering = made(Noise(), mark_synthetic=False)
    rendering.stage(drawn_portrait(), None)  # pyright: ignore[reportArgumentType]
    assert rendering.note is None and rendering.describe() == {"size": [32, 32], "synthetic": None}


def test_its_projection_and_limits_are_known() -> None:
    assert made(Noise(compat=True)).compat and not made(Noise()).compat
    assert made(Noise(), limit_seconds=9.0).seconds() == 9 and made(Noise(), preview=True).seconds() == 2


@pytest.mark.parametrize(("side", "said"), [(33, "both sides must be even"), (8, "16 to 8192")])
def test_a_size_that_no_video_has_is_refused_before_its_weights(side: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(Noise(side=side)).stage(drawn_portrait(), None)  # pyright: ignore[reportArgumentType]
