"""Animated previews of a validation's videos."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from talkinghead.media.talking_video import write_talking_video
from train.run.previews import animation, media_in, write_previews


def frames(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Frames whose brightness rises."""
    return [np.full((*size, 3), 4 * number % 256, np.uint8) for number in range(count)]


def write_validation(folder: Path, count: int = 20) -> Path:
    """A validation with an image and a video of a held-out clip."""
    held_out = folder / "held-out"
    held_out.mkdir(parents=True)
    write_talking_video(held_out / "clip_1.mp4", iter(frames(count)), width=64, height=48, fps=25)
    assert cv2.imwrite(str(held_out / "sheet-clip_1.png"), frames(2)[1])
    return folder


def test_a_gif_plays_the_first_seconds_at_half_the_rate() -> None:
    with Image.open(io.BytesIO(animation(frames(250)))) as image:
        assert image.format == "GIF" and image.size == (64, 48)
        assert getattr(image, "n_frames", 1) == 50 and image.info["duration"] == 80 and image.info["loop"] == 0
        image.seek(3)
        brightness = np.asarray(image.convert("L"))
    assert abs(int(brightness.mean()) - 4 * 6) <= 2, "frame 3 of the preview is frame 6 of the video"


def test_wide_videos_are_shrunk_and_empty_ones_refused() -> None:
    with Image.open(io.BytesIO(animation(frames(1, (100, 2000))))) as image:
        assert image.size == (640, 32)
    with pytest.raises(ValueError, match="no frame"):
        animation([])


def test_each_video_of_a_validation_gets_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_validation(tmp_path / "step-00000002")
    (folder / "held-out" / "cut.mp4").write_bytes((folder / "held-out" / "clip_1.mp4").read_bytes()[:300])
    write_previews(folder)
    image, video = media_in(folder)
    assert (image.title, image.preview) == ("held-out/sheet-clip_1", None)
    assert video.title == "held-out/clip_1" and video.path == folder / "held-out" / "clip_1.mp4"
    assert video.preview == folder / "previews" / "held-out" / "clip_1.gif" and video.preview.stat().st_size > 100
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "cut.mp4 gets no preview" in warning
