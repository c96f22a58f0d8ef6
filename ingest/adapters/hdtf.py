"""HDTF (Zhang et al., CVPR 2021): the fifteen text files of github.com/MRzzm/HDTF, folder `HDTF_dataset`.

Three subsets RD, WDA, WRA with five files each, one record a line, separated by blanks:

    <S>_video_url.txt      Radio11 <url>
    <S>_resolution.txt     Radio11.mp4 720                        height of the video that the crops refer to, lines
    <S>_annotion_time.txt  Radio11.mp4 00:30-01:00 01:30-02:30    clip index = position, from 0 (spelled so)
    <S>_crop_wh.txt        Radio11_0.mp4 412 599 0 599            x w y h in pixels at that resolution
    <S>_crop_ratio.txt     Radio11_0.mp4 1.2                      enlargement of a face square, kept as attribute

A crop holds only at the listed number of lines: the row's box has that number as `box_height` and ingest scales it to
the real frame. Where the listed number cannot be the reference (0, or a crop with more lines than the frame), the box
is left out, the clip is cropped around the face, and a note says so; the listed numbers stay in the attributes.

What counts as source, in this order: the whole video, a released clip, which common downloaders call `<name>_<n>.mp4`
or `<S>_<name>_<nnn>.mp4`. That one is cut and cropped already, so interval and box do not apply again.

Split groups are persons. WDA and WRA name a video after the person and a running digit, so trailing digits are cut
(CarolynMaloney1, CarolynMaloney2). RD names are programmes (Radio11): each video is its own group. Videos with the
same YouTube id (WhipJimClyburn, JamesClyburn1) join the groups of their names; the group is called after the
alphabetically first name in it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ingest.adapters.metadata import Adapter, Parsed, youtube_id, youtube_url
from ingest.adapters.metadata_files import MetadataFolder
from ingest.adapters.row_checks import MOST_BAD_LINES, check_interval, collect_rows, decimal_number, whole_number
from ingest.released import LISTED, NOTE
from ingest.source_listing import Problem, Problems, SourceListing
from talkinghead.schema import CatalogRow

VERSION = 1
SUBSETS = ("RD", "WDA", "WRA")
LICENCE = "CC-BY-4.0"
TERMS_URL = "https://creativecommons.org/licenses/by/4.0/"

MOST_INTERVALS = 1000
"""Most intervals of one video; the official ones have 1 to 4."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
_INTERVAL = re.compile(
    r"((?:[0-9]{1,9}:){1,2}[0-9]{1,9}(?:\.[0-9]{1,9})?)-((?:[0-9]{1,9}:){1,2}[0-9]{1,9}(?:\.[0-9]{1,9})?)"
)
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class HdtfClip:
    """One annotated interval of a video."""

    index: int
    """Position in the line of `annotion_time`, from 0."""
    start_s: float
    end_s: float
    crop_wh: tuple[int, int, int, int] | None
    """Crop x, w, y, h in pixels at the listed resolution, in the file's order."""
    crop_ratio: float | None
    """Enlargement of a face square."""


@dataclass(frozen=True, kw_only=True)
class HdtfVideo:
    """One video; it may have no interval (Radio24)."""

    subset: str
    name: str
    url: str | None
    height: int | None
    """Listed height in lines; 0 occurs."""
    clips: tuple[HdtfClip, ...] = field(default=())
    """Intervals that could be read."""

    @property
    def person(self) -> str | None:
        """Speaker, from the name without trailing digits; None in RD, whose names are programmes."""
        return None if self.subset == "RD" else self.name.rstrip("0123456789") or self.name

    @property
    def source_id(self) -> str:
        """Name with its subset, e.g. `RD_Radio11`."""
        return f"{self.subset}_{self.name}"


def read_videos(folder: Path, *, follow_links: bool = False) -> tuple[list[HdtfVideo], Problems]:
    """All videos of the metadata, in the order of the files, and the lines that could not be read."""
    # A subset without intervals has no clips; the others may still be complete.
    problems = Problems(MOST_BAD_LINES)
    videos: list[HdtfVideo] = []
    for subset in SUBSETS:
        if (folder / f"{subset}_annotion_time.txt").is_file():
            videos += _read_subset(MetadataFolder(folder, follow_links), subset, problems)
        else:
            problems.append(Problem(file=f"{subset}_annotion_time.txt", message=f"not there: no {subset} clips"))
    return videos, problems


def _read_subset(folder: MetadataFolder, subset: str, problems: Problems) -> list[HdtfVideo]:
    """Videos of one subset, joined from its five files by name."""

    def table(what: str, parse: Callable[[list[str]], _Value]) -> dict[str, tuple[int, _Value]]:
        return _read_table(folder, f"{subset}_{what}.txt", parse, problems)

    # The five files, each keyed by the name of a video or of a clip.
    urls = table("video_url", lambda fields: _exactly(1, fields)[0])
    heights = table("resolution", lambda fields: whole_number(_exactly(1, fields)[0], "the height", 0))
    crops = table("crop_wh", _crop)
    ratios = table("crop_ratio", lambda fields: decimal_number(_exactly(1, fields)[0], "the ratio", 0, 100))
    intervals = table("annotion_time", _intervals)
    videos = []
    for name in dict.fromkeys((*urls, *intervals)):
        # One clip per interval. A wrong one still counts for the index, by which its crop is listed.
        clips: list[HdtfClip] = []
        if name not in intervals:
            file, line = f"{subset}_video_url.txt", urls[name][0]
            problems.append(Problem(file=file, line=line, message=f"{name} has a url but no intervals: no clip"))
        for index, text in enumerate(intervals[name][1] if name in intervals else ()):
            try:
                start_s, end_s = _interval(text)
            except ValueError as error:
                file, line = f"{subset}_annotion_time.txt", intervals[name][0]
                problems.append(Problem(file=file, line=line, message=f"{name}, interval {index}: {error}"))
                continue
            # Taken out of the tables, so that what is left in the end belongs to no interval.
            crop, ratio = crops.pop(f"{name}_{index}", None), ratios.pop(f"{name}_{index}", None)
            clips.append(
                HdtfClip(
                    index=index,
                    start_s=start_s,
                    end_s=end_s,
                    crop_wh=crop[1] if crop else None,
                    crop_ratio=ratio[1] if ratio else None,
                )
            )
        url, height = urls.get(name), heights.get(name)
        videos.append(
            HdtfVideo(
                subset=subset,
                name=name,
                url=url[1] if url else None,
                height=height[1] if height else None,
                clips=tuple(clips),
            )
        )
    # Crops without an interval are listed, because they may be a sign of a truncated file.
    for what, left in (("crop_wh", crops), ("crop_ratio", ratios)):
        problems += [
            Problem(file=f"{subset}_{what}.txt", line=line, message=f"{clip} has no interval")
            for clip, (line, _) in left.items()
        ]
    return videos


def _read_table(
    folder: MetadataFolder, file: str, parse: Callable[[list[str]], _Value], problems: Problems
) -> dict[str, tuple[int, _Value]]:
    """Table of a file: name (without `.mp4`) → (line number, parsed fields); wrong lines are added to `problems`."""
    path = folder.path / file
    if not path.is_file():
        problems.append(Problem(file=path.name, message="not there"))
        return {}
    table: dict[str, tuple[int, _Value]] = {}
    for number, text in folder.lines(path, problems):
        # The name is the first word in all five files; only some write it with `.mp4`.
        name, *fields = text.split()
        name = name.removesuffix(".mp4")
        try:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is not a video name")
            if name in table:
                raise ValueError(f"{name} stands in line {table[name][0]} already; the first is taken")
            if not fields:
                raise ValueError(f"nothing behind {name}")
            table[name] = (number, parse(fields))
        except ValueError as error:
            problems.append(Problem(file=path.name, line=number, message=str(error)))
    return table


def _exactly(count: int, fields: list[str]) -> list[str]:
    if len(fields) != count:
        raise ValueError(f"{count} value(s) expected behind the name, found {' '.join(fields[:9])!r}")
    return fields


def _crop(fields: list[str]) -> tuple[int, int, int, int]:
    """Crop x, w, y, h of a line of `crop_wh`."""
    x, width, y, height = (whole_number(value, "the crop") for value in _exactly(4, fields))
    if width <= 0 or height <= 0:
        raise ValueError(f"crop {' '.join(fields)!r} is empty")
    return x, width, y, height


def _intervals(fields: list[str]) -> list[str]:
    """Intervals of a line of `annotion_time`, as they stand there."""
    if len(fields) > MOST_INTERVALS:
        raise ValueError(f"{len(fields):,} intervals; a video may have {MOST_INTERVALS:,}")
    return fields


def _interval(text: str) -> tuple[float, float]:
    """Start and end in seconds of `mm:ss-mm:ss` (or with hours)."""
    match = _INTERVAL.fullmatch(text)
    if not match:
        raise ValueError(f"{text[:80]!r} is not mm:ss-mm:ss")
    start_s, end_s = (_seconds(value) for value in match.groups())
    if end_s <= start_s:
        raise ValueError(f"{text!r} ends before it starts")
    check_interval(start_s, end_s)
    return start_s, end_s


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total


def split_groups(videos: list[HdtfVideo]) -> dict[str, str]:
    """Split group of each video, by `source_id`: videos of one person or one YouTube id belong together."""
    # Union-find: the root of a name is the name of its group.
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    # Every name begins as its own group; videos with one id then join the groups of their names.
    by_id: dict[str, list[str]] = defaultdict(list)
    for video in videos:
        name = video.person or video.source_id
        root(name)
        if identifier := youtube_id(video.url):
            by_id[identifier].append(name)
    for names in by_id.values():
        for name in names[1:]:
            first, second = sorted((root(names[0]), root(name)))
            parent[second] = first  # the alphabetically first name stays on top
    return {video.source_id: root(video.person or video.source_id) for video in videos}


def read(metadata: Path, listing: SourceListing) -> Parsed:
    """Catalog rows of all intervals."""
    videos, problems = read_videos(metadata, follow_links=listing.follow_links)
    groups = split_groups(videos)
    # A video that is called as another one's clip would be (none of the official ones) is no such clip.
    taken = {name for video in videos for name in (video.name, video.source_id)}

    def clips() -> Iterator[tuple[HdtfVideo, HdtfClip, str | None, tuple[str, ...]]]:
        for video in videos:
            # HDTF prescribes no file names, so the usual ones are tried: with the subset first, the YouTube id last.
            names = (video.source_id, f"{video.subset}-{video.name}", video.name, youtube_id(video.url))
            source, notes = listing.find(name for name in names if name)
            for clip in video.clips:
                if source is not None:
                    yield video, clip, source, notes
                else:
                    released, others = listing.find(name for name in _clip_names(video, clip) if name not in taken)
                    yield video, clip, released, (*others, NOTE) if released else others

    rows = collect_rows(
        clips(),
        lambda item: _row(item[0], item[1], groups[item[0].source_id], item[2], item[3]),
        lambda item: (f"{item[0].subset}_annotion_time.txt: {item[0].name}, interval {item[1].index}", None),
        problems,
    )
    return Parsed(rows=rows, problems=problems)


def _clip_names(video: HdtfVideo, clip: HdtfClip) -> list[str]:
    """Names that a released clip may have, the surest first."""
    stems = (video.source_id, f"{video.subset}-{video.name}", video.name)
    return [f"{stem}_{number}" for stem in stems for number in (f"{clip.index:03d}", str(clip.index))]


def _row(video: HdtfVideo, clip: HdtfClip, group: str, source: str | None, notes: tuple[str, ...]) -> CatalogRow:
    """Catalog row of one interval, whose video was found as `source` with `notes`."""
    identifier = youtube_id(video.url)
    released = NOTE in notes
    box, box_notes = (None, ()) if released else _box(clip, video.height)
    # The listed numbers are kept also where they give no box.
    attributes = {
        "crop_wh": clip.crop_wh,
        "crop_ratio": clip.crop_ratio,
        "listed_height": video.height,
        "subset": video.subset,
        **({LISTED: [clip.start_s, clip.end_s]} if released else {}),
    }
    return CatalogRow(
        key=f"hdtf-{video.subset}-{video.name}-{clip.index:03d}",
        dataset="hdtf",
        source_id=video.source_id,
        source=source,
        url=youtube_url(identifier) if identifier else video.url,
        start_s=None if released else clip.start_s,
        end_s=None if released else clip.end_s,
        box=box,
        box_height=float(video.height) if box and video.height else None,
        person=video.person,
        split_group=group,
        licence=LICENCE,
        terms_url=TERMS_URL,
        notes=box_notes + notes,
        attributes=json.dumps(attributes, sort_keys=True),
        adapter_version=VERSION,
    )


def _box(clip: HdtfClip, height: int | None) -> tuple[tuple[float, float, float, float] | None, tuple[str, ...]]:
    """Crop as x0, y0, x1, y1 at the listed resolution, or None; and notes with the reason."""
    if clip.crop_wh is None:
        return None, ("no crop listed; cropped around the face",)
    x, width, y, lines = clip.crop_wh
    if not height:
        return None, (f"resolution listed as {height}, so the crop has no reference; cropped around the face",)
    if lines > height:
        return None, (f"crop of {lines} lines is larger than the listed {height}; cropped around the face",)
    return (float(x), float(y), float(x + width), float(y + lines)), ()


def has_metadata(path: Path) -> bool:
    """Whether a folder holds the intervals of at least one subset."""
    return any((path / f"{subset}_annotion_time.txt").is_file() for subset in SUBSETS)


ADAPTER = Adapter(
    dataset="hdtf",
    read=read,
    official_files="RD_annotion_time.txt, RD_video_url.txt, RD_resolution.txt, RD_crop_wh.txt, … (also WDA_*, WRA_*)",
    has_metadata=has_metadata,
)
