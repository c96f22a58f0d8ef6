"""Output files of `infer`: a video, its companion files, and a sidecar (JSON) that records how it was made.

`infer landmarks` writes the drawn landmark video and its arrays; `infer audio` and `infer video` write the generated
video and a drawn landmark video of the motion. Each file is whole or not there, and the video is put in place last, so
a video that is there has its companions.
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
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import encode_talking_video
from talkinghead.motion.motion import Motion
from talkinghead.provenance import library_versions, pretty_json
from talkinghead.runtime.errors import is_machine_error
from talkinghead.runtime.peak_memory import peak_memory as host_peak_memory
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.timebase import FPS

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


def write_landmarks(
    path: Path,
    motion: Motion,
    landmarks: np.ndarray,
    *,
    reference_pose_matrix: np.ndarray,
    size: tuple[int, int],
    sound: Path,
    describe: Callable[[], dict[str, Any]],
    progress: ProgressCallback,
) -> None:
    """Write a landmark video and its `landmark_companions`; all of them, or none after an error.

    Args:
        path: Video to write.
        motion: Motion to save as arrays.
        landmarks: Its landmarks, `[F, 468, 2]`, to draw and to save.
        reference_pose_matrix: Head pose of the portrait, `[4, 4]`, that the saved `pose` is relative to.
        size: Width and height of the video in pixels, even.
        sound: File whose sound goes into the video.
        describe: Returns the sidecar; called when the other files are written.
        progress: Called for each frame that is drawn.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    with _staged(path, *landmark_companions(path)) as (video, arrays, sidecar_file):
        _draw(video, landmarks, motion.fps, size, sound, progress)
        with arrays.open("wb") as stream:
            np.savez(
                stream,
                mesh=motion.meshes(),
                pose=motion.pose_about(reference_pose_matrix),
                pose_matrix=motion.pose_matrix,
                landmarks=landmarks,
                fps=np.float64(motion.fps),
            )
        sidecar_file.write_bytes(pretty_json(describe()))


def write_animation(
    path: Path,
    frames: Iterable[np.ndarray],
    landmarks: np.ndarray,
    *,
    fps: float,
    size: tuple[int, int],
    drawn_size: tuple[int, int],
    sound: Path | None,
    describe: Callable[[], dict[str, Any]],
    note: SyntheticNote | None,
) -> None:
    """Write a generated video and its `animation_companions`; all of them, or none after an error.

    Args:
        path: Video to write.
        frames: Frames RGB uint8 `[height, width, 3]` of the video, consumed one at a time.
        landmarks: Landmarks that the frames were generated from, `[F, 468, 2]`, F being the number of frames.
        fps: Frame rate of both videos.
        size: Width and height of the video in pixels, even.
        drawn_size: Width and height in pixels of the images that the landmarks belong to. The landmark video has this
            size, or a multiple where it is small.
        sound: File whose sound goes into both videos; None: no sound.
        describe: Returns the sidecar; called when the other files are written.
        note: Note in the video itself that it is synthetic; None: it says nothing.

    Raises:
        ValueError: There are no frames.
        OSError: No space left, or the folder cannot be written.
    """
    # The landmark video comes first: it takes seconds, and shows early whether the disk has room.
    enlarge = max(1, -(-_SMALLEST_DRAWING // min(drawn_size)))
    with _staged(path, *animation_companions(path)) as (video, drawing, sidecar_file):
        _draw(drawing, landmarks, fps, (drawn_size[0] * enlarge, drawn_size[1] * enlarge), sound)
        encode_talking_video(video, frames, width=size[0], height=size[1], fps=fps, speech=sound, note=note)
        sidecar_file.write_bytes(pretty_json(describe()))


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


def _draw(
    path: Path,
    landmarks: np.ndarray,
    fps: float,
    size: tuple[int, int],
    sound: Path | None,
    progress: ProgressCallback | None = None,
) -> None:
    """Draw landmarks `[F, 468, 2]` and write them as a video of `size` (width, height) in pixels."""
    width, height = size

    # Drawn as the encoder asks for them, so only one image is in memory.
    def frames() -> Iterator[np.ndarray]:
        if progress:
            progress("draw and encode", 0, len(landmarks))
        for number, points in enumerate(landmarks, 1):
            yield draw_guidance(points, width, height)
            if progress:
                progress("draw and encode", number, len(landmarks))

    encode_talking_video(path, frames(), width=width, height=height, fps=fps, speech=sound, settings=_DRAWN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """What drove the portrait, what drew it, and what lay between them, by the names of a sidecar."""

    driver: str
    """`audio2lmk` (speech) or `video`."""
    renderer: str
    """`lmk2video`, or `landmarks` (drawn lines)."""
    conversions: tuple[str, ...]
    """Steps from the driver's motion to what the renderer takes, in order."""

    @classmethod
    def of(cls, command: str, *, fps: float, compat: bool) -> Pair:
        """Pair of a command.

        Args:
            command: `landmarks`, `audio` or `video`.
            fps: Frame rate of the video; motion is made at 25.
            compat: Whether landmarks are projected as AniPortrait does.
        """
        resampled = (f"motion resampled from {FPS:g} to {fps:g} frames per second",) if fps != FPS else ()
        landmarks = "landmarks of meshes and head poses, seen by the portrait's camera" + (
            " as AniPortrait sees them" if compat else ""
        )
        return cls(
            driver="video" if command == "video" else "audio2lmk",
            renderer="landmarks" if command == "landmarks" else "lmk2video",
            conversions=(*resampled, landmarks),
        )


def sidecar(
    command: str,
    request: Any,
    *,
    pair: Pair,
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
        pair: What drove the portrait, what drew it, and what lay between them.
        inputs: Properties and hashes of the files that were read.
        weights: Origin, hash and licence of the weights, by part.
        result: Properties of the video, and settings that were chosen on the way.
        seconds: Wall time of each stage in seconds.
        device: Device on which the models ran.
    """
    # Names without folders: a sidecar is passed on with its video, and where files lie tells of the user and machine.
    settings = {name: _without_folders(value) for name, value in dataclasses.asdict(request).items()}
    return {
        "command": command,
        "seed": request.seed,
        "driver": pair.driver,
        "renderer": pair.renderer,
        "conversions": list(pair.conversions),
        "settings": settings,
        "inputs": inputs,
        "weights": {part: about | {"path": place_name(Path(about["path"]))} for part, about in weights.items()},
        "result": result | {"device": device},
        "libraries": library_versions(*_LIBRARIES),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_bytes": peak_memory(device),
    }


def place_name(path: Path) -> str:
    """Name of a file or folder without those above it; with one of them where the name is the same everywhere."""
    path = path.absolute()
    return "/".join(path.parts[-2:]) if path.name in _EVERYWHERE else path.name


def _without_folders(value: Any) -> Any:
    """A setting, and a path in it by its name: `Path`, or the text of `--pose video:FILE`."""
    if isinstance(value, Path):
        return place_name(value)
    if isinstance(value, str) and "/" in value:
        kind, colon, path = value.partition(":")
        return f"{kind}:{place_name(Path(path))}" if colon else place_name(Path(value))
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
