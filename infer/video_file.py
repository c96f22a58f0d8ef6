"""What `infer landmarks` writes: the drawn video with the speech, the arrays beside it, and how it was made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.command_line import MACHINE_ERRORS
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.talking_video import check_video_size, encode_talking_video
from talkinghead.pipelines.landmark_motion import LandmarkMotion
from talkinghead.provenance import pretty_json
from talkinghead.staging import staged_file

SUFFIX = ".mp4"
_ENCODER = EncoderSettings(preset="veryfast")  # on drawn lines as small as the slower ones, in half the time

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


def video_size(width: int, height: int, asked_width: int | None, asked_height: int | None) -> tuple[int, int]:
    """Size of the video for a reference of `width` x `height` pixels.

    What is not asked for follows from the other side; with neither it is the reference's size. Made even, downwards.

    Raises:
        ValueError: A size that cannot be encoded.
    """
    if asked_width is not None and asked_height is not None:
        size = (asked_width, asked_height)
    elif asked_width is not None:
        size = (asked_width, _even(height * asked_width / width))
    elif asked_height is not None:
        size = (_even(width * asked_height / height), asked_height)
    else:
        size = (_even(width), _even(height))
    try:
        check_video_size(*size)
    except ValueError as error:
        raise ValueError(f"{error}; set --width and --height") from error
    return size


def _even(length: float) -> int:
    return int(length) // 2 * 2


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
        encode_talking_video(
            video, frames, width=width, height=height, fps=motion.fps, speech=speech, settings=_ENCODER
        )
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


def _drawn(motion: LandmarkMotion, width: int, height: int, watch: Watch) -> Iterator[np.ndarray]:
    watch("draw and encode", 0, len(motion))
    for number, points in enumerate(motion.landmarks, 1):
        yield draw_guidance(points, width, height)
        watch("draw and encode", number, len(motion))
