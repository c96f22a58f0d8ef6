"""Log of a download: a line of `SOURCE/download.jsonl` for each try at a video."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from talkinghead.files.foreign import open_own, parse_json, read_limited

LOG_NAME = "download.jsonl"
LOG_BYTES = 256 << 20
"""Largest log that is read: a million tries."""

Status = Literal["ok", "gone", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """Outcome of one try at a video; a line of `download.jsonl`."""

    name: str
    """File name without suffix: the YouTube id, or the data set's name of the video."""
    url: str | None
    status: Status
    """`ok`: the file is there. `gone`: removed or private, not tried again. `failed`: tried again next time. `refused`:
    not taken by the rules of the command, which other options may change; looked at again next time."""
    reason: str = ""
    """Message of the site or of the machine, in one line; empty for `ok`."""
    file: str | None = None
    """Name of the file in SOURCE; None unless `ok`."""
    bytes: int = 0
    """Size of the file."""
    seconds: float = 0.0
    """Duration of the try."""


def read_log(source: Path) -> dict[str, DownloadResult]:
    """Last result of each video in `SOURCE/download.jsonl`, by name; a line cut off by a kill is skipped.

    Raises:
        ValueError: It is no regular file, or has more than `LOG_BYTES`.
    """
    try:
        lines = read_limited(source / LOG_NAME, LOG_BYTES, "log").splitlines()
    except FileNotFoundError:
        return {}
    results: dict[str, DownloadResult] = {}
    for line in lines:
        try:
            result = DownloadResult(**parse_json(line, LOG_NAME))
            results[result.name] = result
        except (ValueError, TypeError):
            continue
    return results


def append_log(source: Path, result: DownloadResult) -> None:
    """Add one line to `SOURCE/download.jsonl`; it is on the disk when this returns.

    Raises:
        ValueError: It is a link or no regular file: SOURCE may be a stranger's.
    """
    with os.fdopen(open_own(source / LOG_NAME), "rb+") as stream:
        # A line that a kill left half written is ended first, so that it spoils no other.
        if stream.seek(0, os.SEEK_END) > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(asdict(result), sort_keys=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
