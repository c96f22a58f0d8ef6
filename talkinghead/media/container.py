"""Opens media files and streams with FFmpeg's demuxers, and turns what can go wrong into one clear line.

Only demuxers of self-contained audio and video files are allowed: a playlist, a concat script, a subtitle or a text
file (FFmpeg would "play" it as terminal art) that carries a video's name is refused instead of followed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av
import av.container
from av.error import FFmpegError

from talkinghead.media.errors import UnreadableMediaError

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,ivf,obu,h264,hevc,m4v,yuv4mpegpipe,gif,rm,dv,"
    "wav,w64,flac,mp3,aac,ac3,eac3,aiff,au,caf,amr,ape,tta,wv"
)
"""Demuxers that may open a file (names of libavformat)."""

MediaFile = Path | BinaryIO
"""A path, or a seekable binary stream that holds the whole file."""


@contextmanager
def open_media(file: MediaFile, kind: str = "video") -> Iterator[av.container.InputContainer]:
    """Open a media file for reading.

    Args:
        file: Path or seekable stream.
        kind: What the user was asked for, `video` or `audio`; only used in messages.

    Raises:
        ValueError: It is a folder, empty, unreadable, truncated, or nothing FFmpeg knows. The message names the file.
    """
    container = _open(file, kind)
    try:
        yield container
    finally:
        container.close()


def name_of(file: MediaFile) -> str:
    """The file's name for messages."""
    return str(file) if isinstance(file, Path) else str(getattr(file, "name", "stream"))


def start_of(container: av.container.InputContainer) -> float:
    """Presentation time of the earliest audio or video, in seconds: what players show as 0:00."""
    return 0.0 if container.start_time is None else container.start_time / av.time_base


def _open(file: MediaFile, kind: str) -> av.container.InputContainer:
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        if not isinstance(file, Path):
            return av.open(file, "r", container_options=options)
        if file.is_dir():
            raise UnreadableMediaError("folder", f"{file} is a folder, not {_with_article(kind)} file")
        if file.stat().st_size == 0:
            raise UnreadableMediaError("empty_file", f"{file} is empty (0 bytes)")
        with file.open("rb"):  # a clear error of the operating system rather than FFmpeg's
            pass
        # `file:` and an absolute path: no name can be taken for an option, a protocol or a pattern.
        return av.open(f"file:{file.absolute()}", "r", container_options=options)
    except FFmpegError as error:
        cause = "its index is missing or damaged, or it is another kind of file"
        message = f"{name_of(file)} is not {_with_article(kind)} that can be opened: {cause} ({error.strerror})"
        raise UnreadableMediaError("not_media", message) from error
    except FileNotFoundError as error:
        raise UnreadableMediaError("not_found", f"{name_of(file)} is not there") from error
    except PermissionError as error:
        raise UnreadableMediaError("no_permission", f"{name_of(file)} may not be read by this user") from error
    except OSError as error:
        raise ValueError(f"{name_of(file)} cannot be read: {error.strerror or error}") from error


def as_stream(data: bytes | BinaryIO) -> BinaryIO:
    """A binary stream over bytes; a stream passes through."""
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
