"""Frames of the video that is dubbed: from any frame on, to and fro, turned, at 25 fps, and in flat memory."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infer.dubbing import footage as module
from infer.dubbing.footage import Footage
from infer.faces import turned
from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.talking_video import write_talking_video
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.resampling import tile
from tests.support.media_files import write_video


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 23 frames at 25 fps, each of another grey."""
    path = tmp_path_factory.mktemp("footage") / "numbered.mp4"
    frames = (np.full((48, 64, 3), 10 + 10 * number, np.uint8) for number in range(23))
    write_talking_video(path, frames, width=64, height=48, fps=25)
    return path


def numbers(images: list[np.ndarray]) -> list[int]:
    return [round((float(image.mean()) - 10) / 10) for image in images]


def test_from_any_frame_on(numbered: Path) -> None:
    with Footage(numbered) as footage:
        assert footage.size == (64, 48)
        assert numbers(list(footage.images())) == list(range(23))
        for first in (0, 1, 11, 22):
            assert numbers(list(footage.images(first))) == list(range(first, 23))
            assert numbers(list(footage.images(first, 3))) == list(range(first, min(23, first + 3)))
        assert numbers([footage.image(17)]) == [17]
        with pytest.raises(ValueError, match="has no frame 40"):
            footage.image(40)


@pytest.mark.parametrize(("length", "count"), [(23, 23), (23, 60), (7, 30), (1, 5), (2, 7), (23, 4)])
def test_to_and_fro(numbered: Path, monkeypatch: pytest.MonkeyPatch, length: int, count: int) -> None:
    """The frames are those of the motion that is played to and fro, also where few are held for the way back."""
    monkeypatch.setattr(module, "_BACKWARDS_BYTES", 64 * 48 * 3)
    with Footage(numbered) as footage:
        found = numbers(list(footage.to_and_fro(length, count)))
    assert found == tile(np.arange(length), count).tolist()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video(numbered: Path, degrees: int) -> None:
    with Footage(numbered, degrees=degrees) as footage, Footage(numbered) as plain:
        assert footage.size == ((48, 64) if degrees != 180 else (64, 48))
        np.testing.assert_array_equal(footage.image(3), turned(plain.image(3), degrees))


@pytest.mark.parametrize("name", ["Moore-AnimateAnyone_4.mp4", "Real3DPortrait_May_5s.mp4"])
def test_frames_of_real_clips(media: Path, name: str) -> None:
    """At 29.97 and 25 fps: seeking gives the frames of a reading from the start."""
    path = media / "video" / name
    with VideoSource(path) as source:
        frames = constant_rate(source.frames(), source.info.start_s, None, source.info.tick_s)
        expected = [frame.reduced(64, 64) for _, frame in zip(range(60), frames, strict=False)]
    with Footage(path) as footage:
        for first in (0, 30, 41):
            found = [frame.reduced(64, 64) for frame in footage.shown(first, 60 - first)]
            np.testing.assert_array_equal(found, expected[first:])


def test_a_stream_that_begins_late(tmp_path: Path) -> None:
    """The first image stands until the stream begins, from whatever frame on it is read."""
    images = [np.full((48, 64, 3), 10 + 10 * number, np.uint8) for number in range(12)]
    silence = np.zeros((1, 44100), np.float32)
    ticks = [*range(6, 18)]
    path = write_video(tmp_path / "late.mp4", images, ticks=ticks, time_base=Fraction(1, 25), audio=silence)
    expected = [0] * 6 + list(range(12))
    with Footage(path) as footage:
        for first in (0, 3, 6, 9):
            assert numbers(list(footage.images(first))) == expected[first:]
        assert numbers(list(footage.to_and_fro(18, 22))) == [*expected, *expected[-2:-6:-1]]
