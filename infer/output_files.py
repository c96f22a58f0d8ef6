"""Output files of `infer`: a video, its companion files, and a sidecar (JSON) that records how it was made.

Next to drawn landmarks lie the arrays of the motion; next to generated images, a drawn landmark video of it. Each file
is whole or not there, and the video is put in place last, so a video that is there has its companions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infer.motion_record import MotionRecord
from talkinghead.files.atomic import staged_file
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import encode_talking_video
from talkinghead.pipelines.protocols import Pairing
from talkinghead.provenance import hash_file, library_versions, pretty_json
from talkinghead.runtime.errors import is_machine_error
from talkinghead.runtime.peak_memory import peak_memory as host_peak_memory

SUFFIX = ".mp4"
_EVERYWHERE = ("pretrained_model", "lmk2video", "stage1", "stage2", "audio2mesh", "audio2pose")
"""Names of folders that say nothing without the folder above."""
_DRAWN = EncoderSettings(preset="veryfast")  # drawn lines compress as well as with slower presets, in half the time
_SMALLEST_DRAWING = 256  # pixels of the shorter side; lines of a smaller image cannot be told apart
_LIBRARIES = ("talkinghead", "torch", "transformers", "diffusers", "numpy", "opencv-contrib-python", "av")


def landmark_companions(path: Path) -> tuple[Path, Path]:
    """Paths of the arrays (.npz) and the sidecar (.json) next to a landmark video."""
    return path.with_suffix(".npz"), path.with_suffix(".json")


def animation_companions(path: Path) -> tuple[Path, Path]:
    """Paths of the landmark video (.landmarks.mp4) and the sidecar (.json) next to a generated video."""
    return path.with_suffix(".landmarks.mp4"), path.with_suffix(".json")


def check_target(path: Path, companions: tuple[Path, ...], *inputs: Path) -> None:
    """Check the names of the outputs.

    Args:
        path: Video to write.
        companions: Files to write next to it.
        inputs: Files that the user gave.

    Raises:
        ValueError: The video has another suffix than `.mp4`, or an output would replace an input.
    """
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"the output is {path}, must end in {SUFFIX}")
    targets = [target.absolute() for target in (path, *companions)]
    # The same path, or another name of the same file: a link, or upper and lower case on some file systems.
    for source in inputs:
        if source.absolute() in targets or any(t.exists() and source.exists() and t.samefile(source) for t in targets):
            raise ValueError(f"the output {path} would replace the input {source}: give it another name")


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    record: MotionRecord,
    *,
    fps: float,
    size: tuple[int, int],
    drawn_size: tuple[int, int],
    arrays: bool,
    sound: Path | None,
    describe: Callable[[], dict[str, Any]],
    note: SyntheticNote | None,
    written: Callable[[Path], None] | None = None,
) -> None:
    """Write a video and its companions (`landmark_companions`, `animation_companions`); all of them, or none.

    Args:
        path: Video to write.
        frames: Frames RGB uint8 `[height, width, 3]` of the video, consumed one at a time.
        record: The motion that the frames show, written down while they are made.
        fps: Frame rate of both videos.
        size: Width and height of the video in pixels, even.
        drawn_size: Width and height in pixels of the images that the landmarks belong to. The landmark video has this
            size, or a multiple where it is small.
        arrays: Whether the arrays of the motion go next to a video of drawn landmarks, rather than a landmark video
            next to one of images.
        sound: File whose sound goes into the videos; None: no sound.
        describe: Returns the sidecar, to which the video's hash is added; called when the other files are written.
        note: Note in the video itself that it is synthetic; None: it says nothing.
        written: Called with the scratch file of the video when it is whole, before `describe`; None: nothing is.

    Raises:
        ValueError: There are no frames.
        OSError: No space left, or the folder cannot be written.
    """
    companions = landmark_companions(path) if arrays else animation_companions(path)
    width, height = size
    with _staged(path, *companions) as (video, companion, sidecar_file):
        settings = _DRAWN if arrays else None
        encode_talking_video(
            video, frames, width=width, height=height, fps=fps, speech=sound, settings=settings, note=note
        )
        if arrays:
            with companion.open("wb") as stream:
                record.write_arrays(stream)
        else:
            _draw(companion, record, fps, drawn_size, sound)
        if written is not None:
            written(video)
        # The hash tells whether a video belongs to the sidecar next to it.
        sidecar_file.write_bytes(pretty_json(describe() | {"video_sha256": hash_file(video)}))


@contextlib.contextmanager
def _staged(path: Path, *companions: Path) -> Iterator[list[Path]]:
    """Scratch files for a video and its companions, in this order; errors of the disk name the video."""
    try:
        with contextlib.ExitStack() as stack:
            # The stack leaves in reverse order, and leaving puts a file in place: the video is entered first and put in
            # place last.
            yield [stack.enter_context(staged_file(target)) for target in (path, *companions)]
    except OSError as error:
        if not is_machine_error(error):
            raise
        # Libraries name no file, or a scratch file that is already removed.
        text = f"cannot write {path} and what goes next to it: {error.strerror or error}"
        raise OSError(error.errno, text) from error


def _draw(path: Path, record: MotionRecord, fps: float, size: tuple[int, int], sound: Path | None) -> None:
    """Draw the landmarks of a motion and write them as a video, no smaller than `_SMALLEST_DRAWING`."""
    enlarge = max(1, -(-_SMALLEST_DRAWING // min(size)))
    width, height = size[0] * enlarge, size[1] * enlarge
    # Drawn as the encoder asks for them, so only one image is in memory.
    images = (draw_guidance(points, width, height) for part in record.landmarks() for points in part)
    encode_talking_video(path, images, width=width, height=height, fps=fps, speech=sound, settings=_DRAWN)


def sidecar(
    command: str,
    request: Any,
    *,
    pairing: Pairing,
    inputs: dict[str, Any],
    weights: dict[str, Any],
    result: dict[str, Any],
    seconds: dict[str, float],
    device: str,
) -> dict[str, Any]:
    """Content of a sidecar: everything needed to make the video again, and what that took.

    Files and folders are named without the folders above them; their hashes identify them.

    Args:
        command: Name of the command of `python -m infer`.
        request: Options of the command, a dataclass.
        pairing: What drove the portrait, what drew it, and what lay between them.
        inputs: Properties and hashes of the files that were read.
        weights: Origin, hash and licence of the weights, by part.
        result: Properties of the video, and settings that were chosen on the way.
        seconds: Wall time of each stage in seconds.
        device: Device on which the models ran.
    """
    return {
        "command": command,
        "seed": request.seed,
        "driver": pairing.driver,
        "renderer": pairing.renderer,
        "conversions": [str(conversion) for conversion in pairing.conversions],
        "settings": settings_of(request),
        "inputs": inputs,
        "weights": {part: about | {"path": place_name(Path(about["path"]))} for part, about in weights.items()},
        "result": result | {"device": device},
        "libraries": library_versions(*_LIBRARIES),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_bytes": peak_memory(device),
    }


def settings_of(request: Any) -> dict[str, Any]:
    """Options of a command as a sidecar holds them: with names in place of paths.

    A sidecar is passed on with its video, and where files lie tells of the user and the machine.
    """
    return {name: _without_folders(value) for name, value in dataclasses.asdict(request).items()}


def place_name(path: Path) -> str:
    """Name of a file or folder without those above it; with one of them where the name is the same everywhere."""
    path = path.absolute()
    return "/".join(path.parts[-2:]) if path.name in _EVERYWHERE else path.name


def _without_folders(value: Any) -> Any:
    """A setting, and paths in it by their names: `Path`, or in the texts of `--pose video:FILE` and `NAME=FILE`."""
    if isinstance(value, Path):
        return place_name(value)
    if isinstance(value, tuple):
        return tuple(map(_without_folders, value))
    if isinstance(value, str) and "/" in value:
        kind, sign, path = value.partition("=") if "=" in value.partition("/")[0] else value.partition(":")
        return f"{kind}{sign}{place_name(Path(path))}" if sign else place_name(Path(value))
    return value


def peak_memory(device: str) -> dict[str, int]:
    """Peak memory of this process so far in bytes: `host`, and `device` where PyTorch measures it.

    Args:
        device: Device on which the models ran.
    """
    found = {"host": host_peak_memory()}
    if device not in ("cpu", "mps"):
        import torch

        module: Any = torch.get_device_module(torch.device(device))
        found["device"] = int(module.max_memory_allocated())
    return found
