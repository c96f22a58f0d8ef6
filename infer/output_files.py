"""What the commands of `infer` write: the video, what belongs to it next to it, and how it was made.

`infer landmarks` writes the drawn video and its arrays; `infer audio` and `infer video` the video and the motion that
was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.files.atomic import staged_file
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.talking_video import encode_talking_video
from talkinghead.motion.landmark_motion import LandmarkMotion
from talkinghead.provenance import pretty_json
from talkinghead.runtime.command_line import MACHINE_ERRORS

SUFFIX = ".mp4"
_DRAWN = EncoderSettings(preset="veryfast")  # on drawn lines as small as the slower ones, in half the time
_SMALLEST_DRAWING = 256  # lines of a smaller picture cannot be told apart

Watch = Callable[[str, int, int], None]
"""Told stage, steps done, steps in all."""


def check_target(path: Path, *inputs: Path, beside: tuple[Path, ...] | None = None) -> None:
    """Raise `ValueError` when the outputs cannot be called that, or would replace an input.

    Args:
        path: The video.
        inputs: Files of the user.
        beside: What is written beside the video; None: its `companions`.
    """
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"the output is {path}, must end in {SUFFIX}")
    targets = [target.absolute() for target in (path, *(companions(path) if beside is None else beside))]
    for source in inputs:
        if source.absolute() in targets or any(t.exists() and source.exists() and t.samefile(source) for t in targets):
            raise ValueError(f"the output {path} would replace the input {source}: give it another name")


def companions(path: Path) -> tuple[Path, Path]:
    """The arrays and the sidecar that stand beside a video."""
    return path.with_suffix(".npz"), path.with_suffix(".json")


def write_outputs(
    path: Path,
    motion: LandmarkMotion,
    speech: Path,
    *,
    width: int,
    height: int,
    describe: Callable[[], dict[str, Any]],
    watch: Watch,
) -> None:
    """Write `path` (.mp4), its `.npz` and its `.json`; each is whole or not there, and the video comes last.

    Args:
        path: The video.
        motion: What to draw.
        speech: The user's file, whose sound goes into the video.
        width: Of the video, even.
        height: Of the video, even.
        describe: Makes the sidecar, when the rest is written.
        watch: Progress.

    Raises:
        OSError: No space left, or the folder cannot be written.
    """
    with disk_errors_named(path):
        _write_staged(path, motion, speech, width=width, height=height, describe=describe, watch=watch)


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Let errors of the disk say which file was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        # The libraries name no file, or a scratch file that is no more.
        text = f"cannot write {path} and what goes beside it: {error.strerror}"
        raise OSError(error.errno, text) from error


def _write_staged(
    path: Path,
    motion: LandmarkMotion,
    speech: Path,
    *,
    width: int,
    height: int,
    describe: Callable[[], dict[str, Any]],
    watch: Watch,
) -> None:
    arrays, sidecar = companions(path)
    # The blocks end inside out: sidecar, arrays, video. So a video that is there has its companions.
    with staged_file(path) as video, staged_file(arrays) as table, staged_file(sidecar) as document:
        frames = _drawn(motion, width, height, watch)
        encode_talking_video(video, frames, width=width, height=height, fps=motion.fps, speech=speech, settings=_DRAWN)
        with table.open("wb") as stream:
            np.savez(
                stream,
                mesh=motion.mesh,
                pose=motion.pose,
                pose_matrix=motion.pose_matrix,
                landmarks=motion.landmarks,
                fps=np.float64(motion.fps),
            )
        document.write_bytes(pretty_json(describe()))


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


def _drawn(motion: LandmarkMotion, width: int, height: int, watch: Watch | None = None) -> Iterator[np.ndarray]:
    if watch:
        watch("draw and encode", 0, len(motion))
    for number, points in enumerate(motion.landmarks, 1):
        yield draw_guidance(points, width, height)
        if watch:
            watch("draw and encode", number, len(motion))
