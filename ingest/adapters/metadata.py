"""What the adapters share: lines of a metadata file, and what an adapter gives back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.problem import Problem
from ingest.source_listing import SourceListing, has_video_suffix
from talkinghead.schema import CatalogRow

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_YOUTUBE_URL = re.compile(
    r"https?://(?:(?:www|m)\.)?(?:youtube\.com/(?:watch\?(?:[^#]*&)?v=|embed/|v/|shorts/)|youtu\.be/)"
    r"([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])"
)


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What an adapter reads out of the metadata."""

    rows: list[CatalogRow]
    problems: list[Problem]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One data set: how its metadata is found and read."""

    dataset: str
    read: Callable[[Path, SourceListing], Parsed]
    """Rows from the metadata (a folder or a file), with the source of each looked up in the listing."""
    official_files: str = ""
    """Names of the metadata files, for messages; empty when the data set has none."""
    has_metadata: Callable[[Path], bool] | None = None
    """Whether a path (folder or file) holds the metadata; None when the data set has none."""
    is_unit_folder: Callable[[str], bool] = has_video_suffix
    """By its name, whether a folder in SOURCE is one input itself."""


def read_lines(path: Path, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank; a byte order mark and outer blanks are taken off.

    A line that is not UTF-8 is added to `problems` and left out.
    """
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            problems.append(Problem(file=path.name, line=number, message=f"not UTF-8: {raw[:60]!r}"))
            continue
        if text:
            yield number, text


def youtube_id(url: str | None) -> str | None:
    """The 11-character id in a YouTube url (`watch?v=`, `youtu.be/`, `embed/`; extra parameters as `&t=6s` allowed)."""
    match = _YOUTUBE_URL.match(url) if url else None
    return match[1] if match else None


def youtube_url(video_id: str) -> str:
    """The page of a YouTube video."""
    return f"https://www.youtube.com/watch?v={video_id}"
