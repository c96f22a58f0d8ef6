"""What the commands of `infer` write: a video, what belongs to it next to it, and a sidecar that says how it was made.

`infer landmarks` writes the drawn video and its arrays; `infer audio` and `infer video` the video and the motion that
was asked for, drawn. Each file is whole or not there, and the video comes last: one that is there has its companions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.files.atomic import staged_file
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.talking_video import encode_talking_video
from talkinghead.motion.landmark_motion import LandmarkMotion
from talkinghead.provenance import library_versions, pretty_json
from talkinghead.runtime.errors import is_machine_error
from talkinghead.runtime.peak_memory import peak_memory as host_peak_memory
from talkinghead.runtime.progress import ProgressCallback

SUFFIX = ".mp4"
_DRAWN = EncoderSettings(preset="veryfast")  # on drawn lines as small as the slower ones, in half the time
_SMALLEST_DRAWING = 256  # lines of a smaller image cannot be told apart
_LIBRARIES = ("talkinghead", "torch", "transformers", "diffusers", "numpy", "opencv-contrib-python", "av")


def landmark_companions(path: Path) -> tuple[Path, Path]:
    """The arrays and the sidecar that stand next to a drawn video."""
    return path.with_suffix(".npz"), path.with_suffix(".json")


def animation_companions(path: Path) -> tuple[Path, Path]:
    """The landmark video and the sidecar that stand next to a video."""
    return path.with_suffix(".landmarks.mp4"), path.with_suffix(".json")


def check_target(path: Path, companions: tuple[Path, ...], *inputs: Path) -> None:
    """Raise `ValueError` when the outputs cannot be called that, or would replace an input.

    Args:
        path: The video.
        companions: What is written next to it.
        inputs: Files of the user.
    """
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"the output is {path}, must end in {SUFFIX}")
    targets = [target.absolute() for target in (path, *companions)]
    for source in inputs:
        if source.absolute() in targets or any(t.exists() and source.exists() and t.samefile(source) for t in targets):
            raise ValueError(f"the output {path} would replace the input {source}: give it another name")


def write_landmarks(
    path: Path,
    motion: LandmarkMotion,
    *,
    size: tuple[int, int],
    sound: Path,
    describe: Callable[[], dict[str, Any]],
    progress: ProgressCallback,
) -> None:
    """Write the drawn video and its `landmark_companions`.

    Args:
        path: The video.
        motion: What to draw, and what the arrays hold.
        size: Width and height of the video, even.
        sound: File whose sound goes into the video.
        describe: Makes the sidecar, when the rest is written.
        progress: Told of each frame that is drawn.

    Raises:
        OSError: No space left, or the folder cannot be written.
    """
    with _staged(path, *landmark_companions(path)) as (video, arrays, sidecar_file):
        _draw(video, motion, size, sound, progress)
        with arrays.open("wb") as stream:
            np.savez(
                stream,
                mesh=motion.mesh,
                pose=motion.pose,
                pose_matrix=motion.pose_matrix,
                landmarks=motion.landmarks,
                fps=np.float64(motion.fps),
            )
        sidecar_file.write_bytes(pretty_json(describe()))


def write_animation(
    path: Path,
    frames: Iterable[np.ndarray],
    motion: LandmarkMotion,
    *,
    size: tuple[int, int],
    drawn_size: tuple[int, int],
    sound: Path | None,
    describe: Callable[[], dict[str, Any]],
) -> None:
    """Write the video and its `animation_companions`.

    Args:
        path: The video.
        frames: RGB uint8 of `size`, one at a time.
        motion: What was asked for, as many frames.
        size: Width and height of the video.
        drawn_size: Width and height of the images that the landmarks belong to; small ones are drawn larger.
        sound: File whose sound goes into both videos.
        describe: Makes the sidecar, when the frames are through.

    Raises:
        ValueError: There are no frames.
        OSError: No space left, or the folder cannot be written.
    """
    enlarge = max(1, -(-_SMALLEST_DRAWING // min(drawn_size)))
    with _staged(path, *animation_companions(path)) as (video, drawing, sidecar_file):
        _draw(drawing, motion, (drawn_size[0] * enlarge, drawn_size[1] * enlarge), sound)
        encode_talking_video(video, frames, width=size[0], height=size[1], fps=motion.fps, speech=sound)
        sidecar_file.write_bytes(pretty_json(describe()))


@contextlib.contextmanager
def _staged(path: Path, *companions: Path) -> Iterator[list[Path]]:
    """Scratch files for a video and what stands next to it; errors of the disk say which file was to be written."""
    try:
        with contextlib.ExitStack() as stack:
            # The stack ends with what was entered last, so the video comes last.
            yield [stack.enter_context(staged_file(target)) for target in (path, *companions)]
    except OSError as error:
        if not is_machine_error(error):
            raise
        # The libraries name no file, or a scratch file that is no more.
        text = f"cannot write {path} and what goes next to it: {error.strerror or error}"
        raise OSError(error.errno, text) from error


def _draw(
    path: Path,
    motion: LandmarkMotion,
    size: tuple[int, int],
    sound: Path | None,
    progress: ProgressCallback | None = None,
) -> None:
    """Write a motion as a drawn video."""
    width, height = size

    def frames() -> Iterator[np.ndarray]:
        if progress:
            progress("draw and encode", 0, len(motion))
        for number, points in enumerate(motion.landmarks, 1):
            yield draw_guidance(points, width, height)
            if progress:
                progress("draw and encode", number, len(motion))

    encode_talking_video(path, frames(), width=width, height=height, fps=motion.fps, speech=sound, settings=_DRAWN)


def sidecar(
    command: str,
    request: Any,
    *,
    inputs: dict[str, Any],
    weights: dict[str, Any],
    result: dict[str, Any],
    seconds: dict[str, float],
    device: str,
) -> dict[str, Any]:
    """The whole document.

    Args:
        command: Name of the command of `python -m infer`.
        request: The command's options, a dataclass.
        inputs: What was read.
        weights: Part → where it is from and its hash.
        result: What came out and what was decided on the way.
        seconds: Stage → wall time.
        device: Where the models ran.
    """
    return {
        "command": command,
        "settings": dataclasses.asdict(request),
        "inputs": inputs,
        "weights": weights,
        "result": result | {"device": device},
        "libraries": library_versions(*_LIBRARIES),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_bytes": peak_memory(device),
    }


def peak_memory(device: str) -> dict[str, int]:
    """Most memory that this process had so far: `host`, and that of the device where it says so."""
    found = {"host": host_peak_memory()}
    if device not in ("cpu", "mps"):
        import torch

        module: Any = torch.get_device_module(torch.device(device))
        found["device"] = int(module.max_memory_allocated())
    return found
