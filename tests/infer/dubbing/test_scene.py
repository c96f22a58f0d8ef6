"""The video of a dubbing: how long it may be, a frame for each frame of the result, cuts, and even sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer.dubbing.footage import Footage
from infer.dubbing.request import DubRequest
from infer.dubbing.scene import LONGEST_S, even_size, read_scene
from talkinghead.face.model import FaceModel
from talkinghead.runtime.progress import Progress
from tests.support.media_files import write_video


def test_a_speech_without_end_needs_a_limit(face_model: FaceModel, tmp_path: Path) -> None:
    request = DubRequest(video=tmp_path / "v", audio=Path("a.wav"), output=Path("o.mp4"), weights=Path("w"))
    with Progress() as progress, pytest.raises(ValueError, match=r"a\.wav is longer than 1200 s.*--limit-seconds"):
        read_scene(request, round(LONGEST_S * 25) + 1, face_model, aspect=1.0, progress=progress)


def test_shots_have_boxes_of_their_own(media: Path, face_model: FaceModel, tmp_path: Path) -> None:
    """A cut to another person elsewhere: the box jumps with it, the result is as long as it is wanted."""
    with Footage(media / "derived" / "identity_cut.mp4") as footage:
        images = list(footage.images(50, 50))
    video = write_video(tmp_path / "cut.mp4", images)
    request = DubRequest(
        video=video, audio=Path("a.wav"), output=Path("o.mp4"), weights=Path("w"), match="loop", reference_frame=3
    )
    with Progress() as progress:
        scene = read_scene(request, 60, face_model, aspect=1.0, progress=progress)
    assert (scene.length, scene.count, scene.reference, scene.degrees) == (50, 60, 3, 0)
    assert scene.frames.tolist() == [*range(50), *range(48, 38, -1)]
    boxes = [str(crop) for crop in scene.track.crops]
    assert len(set(boxes)) == 2 and len(set(boxes[:20])) == 1
    assert scene.portrait.image.shape[:2] == (scene.track.crops[3].height, scene.track.crops[3].width)


def test_even_sizes() -> None:
    assert even_size((641, 480)) == (640, 480) and even_size((640, 481)) == (640, 480)
