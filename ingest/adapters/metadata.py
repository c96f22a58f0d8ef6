"""What the adapters share: what an adapter is and gives back, lines of a metadata file, YouTube's ids and rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.source_listing import Problem, SourceListing, has_video_suffix
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


@dataclass(frozen=True, kw_only=True)
class YoutubeSet:
    """What the rows of a data set of YouTube videos have in common.

    Nothing says whether two videos show one person, so the clips of one video form a split group.
    """

    dataset: str
    adapter_version: int
    licence: str
    terms_url: str

    def row(
        self,
        key: str,
        video_id: str,
        *,
        source: str | None,
        interval: tuple[float, float] | None,
        box: tuple[float, float, float, float] | None,
        box_size: tuple[float, float] | None,
        frame_fps: float | None = None,
        person: str | None = None,
        notes: tuple[str, ...],
        attributes: dict[str, Any],
    ) -> CatalogRow:
        """The row of one clip.

        Args:
            key: Key of the clip, with the data set's name.
            video_id: YouTube's id of the video.
            source: Path of the video in SOURCE; None where it is not there.
            interval: Start and end in the video, seconds; None: all of it.
            box: Crop as x0, y0, x1, y1; None: around the face.
            box_size: Width and height of the frame that the box refers to.
            frame_fps: Rate of a source that is a folder of frames.
            person: Who is shown, where it is known.
            notes: What is to be known about the clip.
            attributes: What else the metadata says.
        """
        start_s, end_s = interval or (None, None)
        box_width, box_height = box_size or (None, None)
        return CatalogRow(
            key=key,
            dataset=self.dataset,
            source_id=video_id,
            source=source,
            url=youtube_url(video_id),
            start_s=start_s,
            end_s=end_s,
            box=box,
            box_width=box_width,
            box_height=box_height,
            frame_fps=frame_fps,
            person=person,
            split_group=video_id,
            licence=self.licence,
            terms_url=self.terms_url,
            notes=notes,
            attributes=json.dumps(attributes, sort_keys=True),
            adapter_version=self.adapter_version,
        )
