"""Output files: sizes, arrays read back, and names that would overwrite an input."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from infer.motion_record import MotionRecord
from infer.output_files import check_target, landmark_companions, place_name, sidecar, write_video
from infer.request import AudioRequest
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.motion import Motion
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.audio2lmk.driver import Audio2LmkDriver
from talkinghead.pipelines.landmark_renderer import DrawnSize, LandmarkRenderer
from talkinghead.pipelines.protocols import LANDMARKS, MotionKind, pair
from talkinghead.provenance import hash_file
from tests.support.landmark_files import read_landmark_file
from tests.support.motions import motion_about

REFERENCE = matrix_from_pose(np.array([0, 0, 0, 0, 0, -40.0]))
POSE = np.linspace(0, 10, 10)[:, None] * (0, 1.0, 0, 0, 0, 0)


def motion(frames: int) -> Motion:
    mesh = mean_face().vertices.astype(np.float32)[None].repeat(frames, axis=0)
    return motion_about(mesh, POSE[:frames], reference_pose_matrix=REFERENCE, width=96, height=64)


def write(path: Path, frames: int = 10, **options: Any) -> None:
    speech = path.parent / "speech.wav"
    if not speech.exists():
        from talkinghead.media.audio import encode_wav

        speech.write_bytes(encode_wav(np.zeros(frames * 640, np.float32)))
    settings: dict[str, Any] = {"fps": 25, "size": (96, 64), "drawn_size": (96, 64), "arrays": True, "note": None}
    settings |= {"sound": speech, "describe": lambda: {"seed": 1}}
    with MotionRecord(
        path.parent, compat=False, reference_pose_matrix=REFERENCE, own_outside=0.0, arrays=True
    ) as record:
        stream = record.following(MotionStream.of(motion(frames), 4))
        renderer = LandmarkRenderer()
        drawn = renderer.render(DrawnSize(width=96, height=64), stream)
        write_video(path, drawn, record, **(settings | options))


def test_arrays_and_images_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mp4"
    path.parent.mkdir()
    write(path)
    assert {file.name for file in path.parent.iterdir()} == {"out.mp4", "out.npz", "out.json", "speech.wav"}
    assert json.loads(path.with_suffix(".json").read_bytes()) == {"seed": 1, "video_sha256": hash_file(path)}
    again, wanted = read_landmark_file(path.with_suffix(".npz")), motion(10)
    for name in ("mesh", "pose_matrix", "fps"):
        assert np.array_equal(getattr(again, name), getattr(wanted, name)), name
    assert np.array_equal(again.landmarks, wanted.landmarks())
    np.testing.assert_allclose(again.pose, POSE, atol=1e-9)
    with VideoSource(path) as video:
        images = [frame.image for frame in video.frames()]
    assert len(images) == 10 and images[0].shape == (64, 96, 3)
    drawn = draw_guidance(wanted.landmarks()[9], 96, 64)
    assert np.abs(images[9].astype(int) - drawn).mean() < 6, "the last frame's drawing, after H.264"
    assert np.abs(images[0].astype(int) - drawn).mean() > np.abs(images[9].astype(int) - drawn).mean()


def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write(path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail() -> dict[str, Any]:
        raise RuntimeError

    def fill_up() -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RuntimeError):
        write(path, describe=fail)
    with pytest.raises(OSError, match=rf"cannot write {path} .*No space left") as full:
        write(path, describe=fill_up)
    assert full.value.errno == errno.ENOSPC
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        check_target(tmp_path / "out.avi", ())
    speech = tmp_path / "speech.mp4"
    speech.touch()
    (tmp_path / "link.mp4").symlink_to(speech)
    for output in ("speech.mp4", "link.mp4"):
        with pytest.raises(ValueError, match="would replace the input"):
            check_target(tmp_path / output, (), speech)
    check_target(tmp_path / "other.mp4", (), speech)
    with pytest.raises(ValueError, match="would replace the input"):
        check_target(tmp_path / "out.mp4", landmark_companions(tmp_path / "out.mp4"), tmp_path / "out.npz")


class Renders:
    name = "lmk2video"
    takes = (MotionKind(space=LANDMARKS, fps=30.0, compat=True),)


def test_a_sidecar_names_files_without_the_folders_of_the_machine(tmp_path: Path) -> None:
    secret = tmp_path / "somebody" / "project"
    request = AudioRequest(
        reference=secret / "face.png",
        output=secret / "out.mp4",
        audio=secret / "a:b.wav",
        weights=secret / "run" / "pretrained_model",
        audio2mesh=secret / "mesh",
        pose=f"video:{secret / 'head.mp4'}",
    )
    found = sidecar(
        "audio",
        request,
        pairing=pair(cast(Any, Audio2LmkDriver), cast(Any, Renders), fps=30),
        inputs={"audio": {"sha256": "0" * 64}},
        weights={"pipeline": {"path": str(secret / "run" / "pretrained_model"), "sha256": "1" * 64}},
        result={},
        seconds={},
        device="cpu",
    )
    text = json.dumps(found)
    assert str(tmp_path) not in text and "somebody" not in text and "project" not in text
    settings = found["settings"]
    assert (settings["reference"], settings["output"], settings["audio"]) == ("face.png", "out.mp4", "a:b.wav")
    assert settings["weights"] == found["weights"]["pipeline"]["path"] == "run/pretrained_model"
    assert (settings["audio2mesh"], settings["pose"], settings["audio2pose"]) == ("mesh", "video:head.mp4", None)
    assert place_name(Path("face.png")) == "face.png"
    assert (found["seed"], found["driver"], found["renderer"]) == (0, "audio2lmk", "lmk2video")
    assert found["conversions"] == [
        "motion resampled from 25 to 30 frames per second (between two frames it is interpolated linearly)",
        "landmarks of meshes and head poses, seen by the portrait's camera as AniPortrait sees them (depth; 3e-5 px at"
        " 512 by rounding)",
    ]
