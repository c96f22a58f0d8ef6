"""What is wrong with a media file, by a stable word, so that failures can be listed and retried by cause."""

from __future__ import annotations

from typing import Literal

Cause = Literal[
    "not_found", "no_permission", "folder", "empty_file", "not_media", "no_video", "no_audio", "undecodable"
]


class UnreadableMediaError(ValueError):
    """A file that is no readable video, audio or image. The message names the file and says what is wrong."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
