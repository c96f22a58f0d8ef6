"""What `infer audio` and `infer video` write: the video, the motion that was asked for, and how it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infer.video_file import disk_errors_named
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.talking_video import encode_talking_video
from talkinghead.pipelines.landmark_motion import LandmarkMotion
from talkinghead.provenance import pretty_json
from talkinghead.staging import staged_file

_DRAWN = EncoderSettings(preset="veryfast")  # on drawn lines as small as the slower ones, in half the time
_SMALLEST_DRAWING = 256  # lines of a smaller picture cannot be told apart


def animation_companions(path: Path) -> tuple[Path, Path]:
    """The landmark video and the sidecar that stand beside a video."""
    return path.with_suffix(".landmarks.mp4"), path.with_suffix(".json")


def write_animation(
    path: Path,
    frames: Iterable[np.ndarray],
    motion: LandmarkMotion,
    *,
    size: tuple[int, int],
    drawn_size: tuple[int, int],
    sound: Path | None,
    describe: Callable[[], dict[str, Any]],
) -> int:
    """Write all three files; each is whole or not there, and the video comes last.

    Args:
        path: The video.
        frames: RGB uint8 of `size`, one at a time.
        motion: What was asked for, as many frames.
        size: Width and height of the video.
        drawn_size: Of the pictures that the landmarks belong to; small ones are drawn larger.
        sound: File whose sound goes into both videos.
        describe: Makes the sidecar, when the frames are through.

    Returns:
        The number of frames.

    Raises:
        ValueError: There are no frames.
        OSError: No space left, or the folder cannot be written.
    """
    landmarks, sidecar = animation_companions(path)
    enlarge = max(1, -(-_SMALLEST_DRAWING // min(drawn_size)))
    width, height = (side * enlarge for side in drawn_size)
    with (
        disk_errors_named(path),
        # The blocks end inside out: sidecar, landmarks, video. So a video that is there has its companions.
        staged_file(path) as video,
        staged_file(landmarks) as drawing,
        staged_file(sidecar) as document,
    ):
        lines = _drawn(motion, width, height)
        options: dict[str, Any] = {"fps": motion.fps, "speech": sound}
        encode_talking_video(drawing, lines, width=width, height=height, settings=_DRAWN, **options)
        count = encode_talking_video(video, frames, width=size[0], height=size[1], **options)
        document.write_bytes(pretty_json(describe()))
    return count


def _drawn(motion: LandmarkMotion, width: int, height: int) -> Iterator[np.ndarray]:
    for points in motion.landmarks:
        yield draw_guidance(points, width, height)
