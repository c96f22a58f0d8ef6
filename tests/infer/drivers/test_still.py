"""A still face on the command line: nothing moves, for as long as the sound, the limit or a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.drivers.still import SECONDS, StillDriving
from talkinghead.motion.motion import Motion
from tests.support.drawn_portrait import drawn_portrait
from tests.support.sound_files import write_pcm

PORTRAIT = drawn_portrait()
UNUSED: Any = None


def moved(sound: Path | None, seconds: float | None, fps: float = 25.0) -> Motion:
    driving = StillDriving(sound)
    driving.find(None)
    driving.read(PORTRAIT, UNUSED, UNUSED, seconds)
    stream = driving.move(PORTRAIT, UNUSED, fps=fps, device="cpu")
    motion = stream.whole()
    assert stream.count == len(motion)
    return motion


@given(seconds=st.floats(0.01, 30), fps=st.sampled_from([12.5, 25.0, 30.0]))
def test_nothing_moves_for_the_time_that_is_asked(seconds: float, fps: float) -> None:
    motion = moved(None, seconds, fps)
    assert 0 <= len(motion) / fps - seconds < 1 / fps + 1e-6 and motion.fps == fps
    assert (motion.meshes() == PORTRAIT.mesh).all() and (motion.pose_matrix == PORTRAIT.pose_matrix).all()
    np.testing.assert_array_equal(motion.neutral, PORTRAIT.mesh)


def test_it_lasts_as_long_as_the_sound(tmp_path: Path) -> None:
    sound = write_pcm(tmp_path / "a.wav", np.full((32_000, 1), 0.3), 16_000)
    assert len(moved(sound, None)) == 50 and len(moved(sound, 1.0)) == 25
    assert len(moved(None, None)) == SECONDS * 25
    driving = StillDriving(sound)
    driving.read(PORTRAIT, UNUSED, UNUSED, None)
    assert driving.describe()["audio"]["seconds"] == 2 and driving.files == [sound] and driving.provenance() == {}


def test_a_sound_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"the sound gone\.wav is not there"):
        StillDriving(Path("gone.wav")).find(None)
