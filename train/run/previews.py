"""Images and videos of a validation for TensorBoard and online services, which show the newest next to the curves.

TensorBoard has no videos, but shows an animated GIF as what it is. The validation makes them in its own process, so
that no rank waits for it.
"""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import av.error
import numpy as np
from PIL import Image

from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import open_regular
from talkinghead.media.clip import decode_clip
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

FOLDER = "previews"
"""Folder of the GIFs, in that of the validation."""
MOST = 48
"""Number of images, and of videos, of a validation that are sent: those of 16 clips in three groups."""
SECONDS = 4
"""Length of a preview: its size grows with it."""
_EVERY = 2  # frames from one to the next, so 12.5 a second
_WIDTH = 640  # most pixels of a row; a video may show five images next to each other


@dataclass(frozen=True, kw_only=True)
class Medium:
    """Image or video of a validation."""

    title: str
    """Its path in the folder of the validation, without the suffix."""
    path: Path
    preview: Path | None = None
    """Animated GIF of a video; None: it is an image."""


def write_previews(folder: Path) -> None:
    """Write a GIF of each video of a validation. One that cannot be read is left out, with a warning.

    Args:
        folder: Folder of the validation.
    """
    for path in _found(folder, "mp4"):
        try:
            with open_regular(path) as stream:
                data = animation(decode_clip(stream))
        except (ValueError, OSError, av.error.FFmpegError) as error:
            log.warning("%s gets no preview: %s", path, error)
            continue
        target = _preview(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)


def media_in(folder: Path) -> list[Medium]:
    """Images, then videos with previews, of a validation that is done.

    Args:
        folder: Folder of the validation.
    """
    images = [Medium(title=_title(folder, path), path=path) for path in _found(folder, "png")]
    videos = [
        Medium(title=_title(folder, path), path=path, preview=preview)
        for path in _found(folder, "mp4")
        if (preview := _preview(folder, path)).is_file()
    ]
    return [*images, *videos]


def animation(frames: Iterable[np.ndarray]) -> bytes:
    """Animated GIF of the first seconds of a video, at half its frame rate.

    Args:
        frames: Frames RGB uint8 `[H, W, 3]` at 25 fps, at least one.

    Raises:
        ValueError: There is no frame.
    """
    chosen = itertools.islice(frames, 0, SECONDS * FPS, _EVERY)
    images = [_shrunk(Image.fromarray(frame)) for frame in chosen]
    if not images:
        raise ValueError("the video has no frame")
    stream = io.BytesIO()
    # GIF counts hundredths of a second: 8 of them are two frames of 25 fps.
    duration = round(1000 * _EVERY / FPS)
    images[0].save(stream, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return stream.getvalue()


def _shrunk(image: Image.Image) -> Image.Image:
    image.thumbnail((_WIDTH, _WIDTH))
    return image


def _found(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{suffix}"))[:MOST]


def _title(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _preview(folder: Path, path: Path) -> Path:
    return folder / FOLDER / f"{_title(folder, path)}.gif"
