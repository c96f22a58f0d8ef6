"""CelebV-HQ (Zhu et al., ECCV 2022): `celebvhq_info.json`, or a table of the same ids, times and boxes as CSV.

    {"meta_info": {"appearance_mapping": [...], "action_mapping": [...]},
     "clips": {"<ytb_id>_<n>": {"ytb_id", "duration": {"start_sec", "end_sec"},
                                "bbox": {"top", "bottom", "left", "right"}, "attributes": {...}, "version"}}}

    ,VideoId,SaveIdName,Time,Bbox
    0,M2Ohb0FAaJU,M2Ohb0FAaJU_1.mp4,"(81.62, 86.17)","[0.0, 0.8815, 0.1964, 0.6922]"      top, bottom, left, right

A clip name is never split on `_`: ids may hold and begin with `_` or `-`, and 6,898 names have two numbers after the
id. The id is `ytb_id`, or the first 11 characters.

Crop, as in the published `download_and_process.py`: each side of the box moved out by 0.02 of the frame and clamped to
it, turned into pixels by rounding, then made square. The row's box is the enlarged one, normalised (`box_width` =
`box_height` = 1); the square needs the frame's size, so it is left to ingest, and `"box_square": "min"` in the
attributes says how: with h, w of the box in pixels, c = min(h, w) // 2, the square is 2c wide about the centre
((left + right) // 2, (top + bottom) // 2). The published time stamps are cut to hundredths (81.62 s may become
81.61 s); the true ones are used here.

What counts as source, in this order: the YouTube video, a released clip of the clip's name (`<id>_<n>.mp4`, cut and
cropped already), to which interval and box do not apply again.

The listed times are coarse and may span a scene change. Identities are not listed, so clips of one video form a
split group.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.adapters.metadata import YOUTUBE_ID, Adapter, Parsed, YoutubeSet
from ingest.adapters.metadata_files import TABLE_BYTES, MetadataFolder
from ingest.adapters.row_checks import (
    LONGEST_VIDEO_S,
    MOST_BAD_LINES,
    MOST_CLIPS,
    check_interval,
    collect_rows,
    decimal_number,
)
from ingest.released import LISTED, NOTE
from ingest.source_listing import Problem, Problems, SourceListing
from talkinghead.files.foreign import open_regular
from talkinghead.schema import CatalogRow

CELEBV_HQ = YoutubeSet(
    dataset="celebv-hq",
    adapter_version=1,
    licence="CelebV-HQ agreement: non-commercial research only, no redistribution",
    terms_url="https://github.com/CelebV-HQ/CelebV-HQ#agreement",
)
INFO_FILE = "celebvhq_info.json"
CSV_COLUMNS = ("VideoId", "SaveIdName", "Time", "Bbox")
EXPAND = 0.02
"""Distance by which each side of the listed box is moved out, as a share of the frame."""

MOST_LABELS = 500
"""Most names of labels of one kind; the official file has 40 and 35."""

_NAME = re.compile(r"[A-Za-z0-9_-]{11}(?:_[0-9]+)+")
_LONGEST_LABEL = 200  # characters
_WRONG = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)  # what a wrong clip may raise


@dataclass(frozen=True, kw_only=True)
class CelebvClip:
    """One clip as the metadata lists it."""

    name: str
    """`<YouTube id>_<n>`, or `<YouTube id>_<n>_<m>`."""
    video_id: str
    start_s: float
    end_s: float
    bbox: tuple[float, float, float, float]
    """Box as top, bottom, left, right, each from 0 to 1."""
    labels: dict[str, Any]
    """Appearance, action, emotion and version; empty when the file has none."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"clip name {self.name[:80]!r} is not <YouTube id>_<number>")
        if not YOUTUBE_ID.fullmatch(self.video_id):
            raise ValueError(f"{self.name}: {self.video_id[:80]!r} is not a YouTube id")
        check_interval(self.start_s, self.end_s)
        top, bottom, left, right = self.bbox
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise ValueError(f"{self.name}: box {list(self.bbox)} is not inside 0..1")


def expanded_box(bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Box x0, y0, x1, y1 of listed top, bottom, left, right: each side moved out by `EXPAND`, clamped to the frame."""
    top, bottom, left, right = bbox
    x0, y0, x1, y1 = left - EXPAND, top - EXPAND, right + EXPAND, bottom + EXPAND
    return (round(max(x0, 0.0), 6), round(max(y0, 0.0), 6), round(min(x1, 1.0), 6), round(min(y1, 1.0), 6))


def read_info(folder: MetadataFolder, path: Path, problems: Problems) -> Iterator[CelebvClip]:
    """Clips of the official JSON; a clip that cannot be read is added to `problems`.

    Raises:
        ValueError: The file is not JSON, or not this JSON.
    """
    # A damaged file is an error, because it would give no clip at all.
    try:
        info = folder.json(path)
    except ValueError as error:
        raise ValueError(f"{error}; download {INFO_FILE} again") from error
    clips = info.get("clips") if isinstance(info, dict) else None
    if not isinstance(clips, dict):
        raise ValueError(f'{path} has no "clips" object; it is not {INFO_FILE}')
    if len(clips) > MOST_CLIPS:
        raise ValueError(f"{path} lists {len(clips):,} clips, more than the {MOST_CLIPS:,} of any data set")
    # The first release spelled it so.
    names = _label_names(info.get("meta_info", info.get("mete_info", {})), path)
    # One wrong clip among 35,666 must not hold up the others.
    for name, clip in clips.items():
        try:
            top, bottom, left, right = (_share(clip["bbox"][side]) for side in ("top", "bottom", "left", "right"))
            yield CelebvClip(
                name=name,
                video_id=clip.get("ytb_id", name[:11]),
                start_s=_seconds(clip["duration"]["start_sec"]),
                end_s=_seconds(clip["duration"]["end_sec"]),
                bbox=(top, bottom, left, right),
                labels=_labels(clip, names),
            )
        except _WRONG as error:
            problems.append(Problem(file=path.name, message=f"clip {name[:80]!r}: {error}"))
        except KeyError as error:
            problems.append(Problem(file=path.name, message=f"clip {name[:80]!r} has no {error}"))


def _label_names(mappings: Any, path: Path) -> dict[str, list[str]]:
    """Names of the appearance and action labels, in the order of a clip's flags; empty where the file has none."""
    names: dict[str, list[str]] = {}
    for kind in ("appearance", "action"):
        listed = mappings.get(f"{kind}_mapping", []) if isinstance(mappings, dict) else []
        # They are repeated in every clip, so a few long ones would fill the memory.
        if not isinstance(listed, list) or len(listed) > MOST_LABELS:
            raise ValueError(f'{path}: "{kind}_mapping" is no list of at most {MOST_LABELS} names')
        if any(not isinstance(name, str) or len(name) > _LONGEST_LABEL for name in listed):
            raise ValueError(
                f'{path}: "{kind}_mapping" has a name that is no text of up to {_LONGEST_LABEL} characters'
            )
        names[kind] = listed
    return names


def _labels(clip: dict[str, Any], label_names: dict[str, list[str]]) -> dict[str, Any]:
    """Names of the appearance and action labels that are set (raw flags where names are missing), emotion as listed."""
    attributes = clip.get("attributes", {})
    labels: dict[str, Any] = {}
    for kind, names in label_names.items():
        flags = attributes.get(kind)
        if flags is not None:
            # `flags` holds 0 or 1 for each name; without matching names the numbers are all there is.
            matched = len(flags) == len(names)
            labels[kind] = [name for name, flag in zip(names, flags, strict=True) if flag] if matched else flags
    for kind, value in (("emotion", attributes.get("emotion")), ("version", clip.get("version"))):
        if value is not None:
            labels[kind] = value
    return labels


def read_csv(folder: MetadataFolder, path: Path, problems: Problems) -> Iterator[CelebvClip]:
    """Clips of the CSV; a line that cannot be read is added to `problems`."""
    # Decoded leniently: ids, times and boxes are ASCII, so a wrong byte spoils its own line only.
    data = io.BytesIO(folder.read(path, TABLE_BYTES))
    reader = csv.reader(io.TextIOWrapper(data, encoding="utf-8-sig", errors="replace", newline=""))
    try:
        header = [column.strip() for column in next(reader, [])]
        columns = [header.index(column) for column in CSV_COLUMNS]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} has no line with the names {', '.join(CSV_COLUMNS)}") from error
    while True:
        try:
            # Also an unclosed quote, or a field of more than 131,072 characters, is the fault of its line only.
            record = next(reader)
            if not record:
                continue
            video_id, name, time, box = (record[column] for column in columns)
            name = name.strip().removesuffix(".mp4")
            start_s, end_s = (_seconds(value) for value in _numbers(time, 2))
            top, bottom, left, right = (_share(value) for value in _numbers(box, 4))
            yield CelebvClip(
                name=name,
                video_id=video_id.strip() or name[:11],
                start_s=start_s,
                end_s=end_s,
                bbox=(top, bottom, left, right),
                labels={},
            )
        except StopIteration:
            return
        except IndexError:
            message = f"{len(record)} columns, {max(columns) + 1} expected"
            problems.append(Problem(file=path.name, line=reader.line_num, message=message))
        except (ValueError, csv.Error) as error:
            problems.append(Problem(file=path.name, line=reader.line_num, message=str(error)))


def _seconds(value: object) -> float:
    return decimal_number(value, "a time", 0, LONGEST_VIDEO_S)


def _share(value: object) -> float:
    return decimal_number(value, "a side of the box", 0, 1)


def _numbers(text: str, count: int) -> list[str]:
    """Numbers of `"(81.62, 86.17)"` or `"[0.0, 0.88, …]"`; `ValueError` unless there are `count`."""
    values = text.strip().strip("()[]").split(",")
    if len(values) != count:
        raise ValueError(f"{count} numbers expected, found {text[:80]!r}")
    return values


def _is_csv(path: Path) -> bool:
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    # The columns decide, since other CSV files may lie in the folder; they may stand in any order.
    with open_regular(path) as stream:
        header = stream.readline(4096).decode("utf-8-sig", "replace")
    return set(CSV_COLUMNS) <= {column.strip() for column in header.split(",")}


def find_metadata(path: Path) -> Path | None:
    """The metadata file: `path` itself, the official JSON in it, or else the first CSV with the right columns."""
    if path.is_file():
        return path if path.suffix.lower() == ".json" or _is_csv(path) else None
    if (path / INFO_FILE).is_file():
        return path / INFO_FILE
    return next((file for file in sorted(path.glob("*.csv")) if _is_csv(file)), None)


def read(metadata: Path, listing: SourceListing) -> Parsed:
    """Catalog rows of all clips."""
    file = find_metadata(metadata)  # found before: an adapter is called only with metadata it recognised
    assert file is not None
    folder, problems = MetadataFolder(metadata, listing.follow_links), Problems(MOST_BAD_LINES)
    clips = (read_info if file.suffix.lower() == ".json" else read_csv)(folder, file, problems)
    rows = collect_rows(
        clips, lambda clip: _row(clip, listing), lambda clip: (f"{file.name}: {clip.name}", None), problems
    )
    return Parsed(rows=rows, problems=problems)


def _row(clip: CelebvClip, listing: SourceListing) -> CatalogRow:
    # The YouTube video first, for it alone gives the official interval and crop; then a released clip.
    source, notes = listing.find([clip.video_id])
    if source is None:
        source, notes = listing.find([clip.name])
        if source is not None:
            return CELEBV_HQ.row(
                f"celebv-hq-{clip.name}",
                clip.video_id,
                source=source,
                interval=None,
                box=None,
                box_size=None,
                notes=(*notes, NOTE),
                attributes={LISTED: [clip.start_s, clip.end_s], **clip.labels},
            )
    return CELEBV_HQ.row(
        f"celebv-hq-{clip.name}",
        clip.video_id,
        source=source,
        interval=(clip.start_s, clip.end_s),
        box=expanded_box(clip.bbox),
        box_size=(1.0, 1.0),  # the box is normalised
        notes=notes,
        attributes={"box_square": "min", **clip.labels},
    )


ADAPTER = Adapter(
    dataset=CELEBV_HQ.dataset,
    read=read,
    official_files=f"{INFO_FILE} (or a CSV with the columns {', '.join(CSV_COLUMNS)})",
    has_metadata=lambda path: find_metadata(path) is not None,
)
