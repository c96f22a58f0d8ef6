"""Parts that the adapters share: an adapter's interface and result, YouTube ids, and rows of YouTube videos."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.source_listing import Problem, SourceListing, has_video_suffix
from talkinghead.schema import CatalogRow

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_YOUTUBE_URL = re.compile(
    r"https?://(?:(?:www|m)\.)?(?:youtube\.com/(?:watch\?(?:[^#]*&)?v=|embed/|v/|shorts/)|youtu\.be/)"
    r"([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])"  # a twelfth character would make it another id
)


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """Result of reading the metadata."""

    rows: list[CatalogRow]
    """One row per clip, in any order."""
    problems: list[Problem]
    """Lines and files that gave no row."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Adapter of one data set: finds and reads its metadata."""

    dataset: str
    read: Callable[[Path, SourceListing], Parsed]
    """Function from the metadata (a folder or a file) to rows, with the source of each looked up in the listing."""
    official_files: str = ""
    """Names of the metadata files, for messages; empty when the data set has none."""
    has_metadata: Callable[[Path], bool] | None = None
    """Test whether a path (folder or file) holds the metadata; None when the data set has none."""
    is_unit_folder: Callable[[str], bool] = has_video_suffix
    """Test by its name whether a folder in SOURCE is one input itself."""


def youtube_id(url: str | None) -> str | None:
    """YouTube's 11-character id in a url (`watch?v=`, `youtu.be/`, `embed/`; extra parameters as `&t=6s` allowed), or
    None."""
    match = _YOUTUBE_URL.match(url) if url else None
    return match[1] if match else None


def youtube_url(video_id: str) -> str:
    """Page of a YouTube video."""
    return f"https://www.youtube.com/watch?v={video_id}"


@dataclass(frozen=True, kw_only=True)
class YoutubeSet:
    """Values that the rows of a data set of YouTube videos have in common.

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
        """Catalog row of one clip.

        Args:
            key: Key of the clip, with the data set's name.
            video_id: YouTube's id of the video.
            source: Path of the video in SOURCE; None where it is not there.
            interval: Start and end in the video, seconds; None: the whole video.
            box: Crop as x0, y0, x1, y1; None: a crop around the face.
            box_size: Width and height of the frame that the box refers to.
            frame_fps: Frame rate of a source that is a folder of frames; None for a video.
            person: Name or id of the person, where it is known.
            notes: Peculiarities of the clip, for people.
            attributes: Further values of the metadata, stored as JSON.
        """
        # The split group is the video, since persons are not known across videos.
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
            attributes=json.dumps(attributes, sort_keys=True, allow_nan=False),
            adapter_version=self.adapter_version,
        )
