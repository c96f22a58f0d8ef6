"""What reading a file may take: an error that names it, and the process as it was afterwards."""

from __future__ import annotations

import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from infer.drivers import driving_video
from infer.drivers.driving_video import read_driving_clip
from infer.memory_limit import GIGABYTE, memory_limit
from infer.portrait import read_portrait
from infer.speech import read_speech
from talkinghead.face.model import FaceModel
from tests.support.hostile_media import long_index, png, sound_with_gap
from tests.support.limited_call import call_limited
from tests.support.media_files import flat, write_video

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs the memory's size in /proc")


@needs_proc
def test_too_much_is_an_error_that_names_the_file() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with (
        pytest.raises(ValueError, match=r"the image a\.png takes more than 1\.0 GB of memory"),
        memory_limit("the image a.png", GIGABYTE),
    ):
        np.ones(GIGABYTE // 4, np.float64)
    with (
        pytest.raises(ValueError, match=r"the image b\.png takes more than 0\.5 GB"),
        memory_limit("the image b.png", GIGABYTE // 2),
    ):
        cv2.resize(np.zeros((8, 8, 3), np.uint8), (30_000, 30_000))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert np.ones(GIGABYTE // 4, np.float64).nbytes == 2 * GIGABYTE, "the limit is off again"


def test_other_errors_pass_and_the_limit_is_taken_off() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(KeyError), memory_limit("a file", GIGABYTE):
        raise KeyError("a")
    with pytest.raises(cv2.error), memory_limit("a file", GIGABYTE):
        cv2.resize(np.zeros((0, 0, 3), np.uint8), (10, 10))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@needs_proc
def test_an_index_of_gigabytes_in_a_kilobyte(tmp_path: Path) -> None:
    """FFmpeg asks for it while it opens the file, before anything could be checked."""
    file = long_index(tmp_path / "a.mp4")
    assert file.stat().st_size < 3000
    code = (
        "from pathlib import Path\nfrom infer.speech import read_speech\ndef call(file): return read_speech(Path(file))"
    )
    called = call_limited(code, file)
    assert called.said.startswith("error: ") and str(file) in called.said
    assert called.memory < GIGABYTE


def test_speech_that_is_too_long_says_what_to_give(tmp_path: Path) -> None:
    file = sound_with_gap(tmp_path / "gap.mka")
    with pytest.raises(ValueError, match=r"longer than 7200 s.*give --limit-seconds"):
        read_speech(file)
    assert len(read_speech(file, seconds=3).samples) == 3 * 16000


def test_a_portrait_that_is_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is too large"):
        read_portrait(png(tmp_path / "a.png", 32_000, 32_000), None)  # pyright: ignore[reportArgumentType]


def test_a_driving_video_with_a_gap_of_hours(
    tmp_path: Path, face_model: FaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps by ten hours would mean 900,000 frames to be searched for faces: there are three."""
    monkeypatch.setattr(driving_video, "LONGEST_S", 0.4)
    video = write_video(tmp_path / "gap.mp4", [flat(64, 48, 90)] * 3, ticks=[0, 1, 900_000])
    with pytest.raises(ValueError, match=r"no face was found in the first [23] frames"):
        read_driving_clip(video, face_model)


def test_a_driving_video_that_is_too_long(
    tmp_path: Path, face_model: FaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving_video, "LONGEST_S", 0.4)
    video = write_video(tmp_path / "long.mp4", [flat(64, 48, 90)] * 3, ticks=[0, 20, 40])
    with pytest.raises(ValueError, match=r"is longer than 0 s.*give --limit-seconds"):
        read_driving_clip(video, face_model)
    with pytest.raises(ValueError, match="no face was found in the first 5 frames"):
        read_driving_clip(video, face_model, seconds=0.2)


def test_sound_that_cannot_be_read_is_told_before_frames_are_made(tmp_path: Path, face_model: FaceModel) -> None:
    """The sound of a driving video is read last, when the frames are there."""
    sound = np.zeros((1, 4000))
    video = write_video(
        tmp_path / "a.mkv", [flat(64, 48, 90)] * 3, audio=sound, audio_rate=384_000, audio_codec="pcm_s16le"
    )
    with pytest.raises(ValueError, match="has sound at 384000 Hz"):
        read_driving_clip(video, face_model)
