"""Errors of media files, each with a stable word for its cause, so that failures can be listed and retried by cause."""

from __future__ import annotations

from typing import Literal

Cause = Literal[
    "not_found",
    "no_permission",
    "folder",
    "empty_file",
    "not_media",
    "no_video",
    "no_audio",
    "undecodable",
    "too_large",
    "too_long",
]


class UnreadableMediaError(ValueError):
    """Error about a file that is no readable video, audio or image. The message names the file and what is wrong."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
