"""The record of a download: one JSON line per tried video, appended to `SOURCE/download.jsonl`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

LOG_NAME = "download.jsonl"

Status = Literal["ok", "gone", "failed"]


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """How one try at a video ended."""

    name: str
    """File name without suffix: the YouTube id, or the data set's name of the video."""
    url: str | None
    status: Status
    """`ok`: the file is there. `gone`: removed or private, not tried again. `failed`: tried again by the next run."""
    reason: str = ""
    file: str | None = None
    bytes: int = 0
    seconds: float = 0.0


def read_log(source: Path) -> dict[str, DownloadResult]:
    """Name → the last result. A line that a killed run left half written is as good as not written."""
    try:
        lines = (source / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    results = {}
    for line in lines:
        try:
            result = DownloadResult(**json.loads(line))
        except (ValueError, TypeError):
            continue
        results[result.name] = result
    return results


def append_log(source: Path, result: DownloadResult) -> None:
    """Add one line, on the disk when this returns."""
    with (source / LOG_NAME).open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(asdict(result), sort_keys=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
