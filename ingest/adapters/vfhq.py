"""VFHQ (Xie et al., CVPRW 2022): one text file per clip (`meta_info.zip`, or unpacked), or plain lists of clip names.

The name holds half of the metadata, `Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>`; the file the rest:

    H: 1080                height and width of the frame that CROP refers to
    W: 1920
    FPS: 25.0              rate of the frame numbers
    <one line per frame>
    CROP: x0 y0 x1 y1      used as frame[y0:y1, x0:x1], ends exclusive

The published parsers disagree about colons and blanks, so a line is known by its first word, and values are its last
words. They disagree about the frames too: the official script and most copies of it cut `first + 1 .. last - 1`
(ffmpeg `between(n, s, e)`, frames counted from 0, time = frame / FPS); others take `first .. last`. Here it is the
official rule: start = (first + 1) / FPS, end = last / FPS, exclusive.

What counts as source, in this order: the YouTube video (needs the meta file, for FPS and crop), a released clip video
of the clip's name, a folder of PNG frames of the clip's name. Released clips come cropped or whole and may be longer
than their frame range, so they are taken as a whole and cropped around the face. Frames are taken at the FPS of the
meta file, or at 25 with a note.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.adapters.metadata import Adapter, Parsed, YoutubeSet
from ingest.adapters.metadata_files import MEMBER_BYTES, MetadataFolder
from ingest.adapters.row_checks import MOST_BAD_LINES, MOST_CLIPS, collect_rows, decimal_number, whole_number
from ingest.released import NOTE
from ingest.source_listing import Problem, Problems, SourceListing, has_video_suffix
from talkinghead.schema import CatalogRow

VFHQ = YoutubeSet(
    dataset="vfhq",
    adapter_version=1,
    licence="VFHQ: non-commercial research only; the videos belong to their YouTube owners",
    terms_url="https://liangbinxie.github.io/projects/vfhq/",
)
LIST_FILES = ("id_train.txt", "id_test.txt")
DEFAULT_FRAME_FPS = 25.0
"""Rate of a folder of frames whose clip has no meta file."""

META_ZIP = "meta_info.zip"

CLIP_NAME = re.compile(r"Clip\+([A-Za-z0-9_-]{11})\+P([0-9]{1,6})\+C([0-9]{1,6})\+F([0-9]{1,9})-([0-9]{1,9})")
_META_FILE = re.compile(r"Clip\+.*\.txt", re.DOTALL)
# A line that gives a value: its first word and the rest, as far as a number can reach.
_VALUE_LINE = re.compile(r"^[ \t:]*(H|W|FPS|CROP)(?=[ \t:]|$)([^\n]{0,300})$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class VfhqName:
    """Parts of a clip's name."""

    text: str
    """The whole name."""
    video_id: str
    person: int
    clip: int
    first: int
    last: int
    """Last frame in the name; the official rule cuts out frames `first + 1 .. last - 1`."""

    @classmethod
    def parse(cls, text: str) -> VfhqName:
        """Parts of a name such as `Clip+WSGW-7gHS6A+P0+C1+F2551-2669`; raises `ValueError` for anything else."""
        match = CLIP_NAME.fullmatch(text)
        if not match:
            raise ValueError(f"{text[:120]!r} is not Clip+<YouTube id>+P<n>+C<n>+F<first>-<last>")
        person, clip, first, last = (int(value) for value in match.groups()[1:])
        # first + 1 .. last - 1 are cut out, see the head of this file.
        if last - first < 2:
            raise ValueError(f"{text!r} holds no frame between {first} and {last}")
        return cls(text=text, video_id=match[1], person=person, clip=clip, first=first, last=last)

    @property
    def key(self) -> str:
        """Key of the clip, e.g. `vfhq-WSGW-7gHS6A-P0-C1-F002551-002669`."""
        return f"vfhq-{self.video_id}-P{self.person}-C{self.clip}-F{self.first:06d}-{self.last:06d}"


@dataclass(frozen=True, kw_only=True)
class VfhqMeta:
    """Content of a meta file: frame size, frame rate and crop."""

    width: int
    height: int
    fps: float
    crop: tuple[float, float, float, float]
    """Crop x0, y0, x1, y1 in pixels of `width` x `height`, ends exclusive."""

    @classmethod
    def parse(cls, text: str) -> VfhqMeta:
        """Read the four lines that matter; raises `ValueError` when one is missing or makes no sense."""
        # The first line of each kind counts; colons are taken as blanks.
        values: dict[str, list[str]] = {}
        for match in _VALUE_LINE.finditer(text.removeprefix("\ufeff").replace("\r", "\n")):
            values.setdefault(match[1], match[2].replace(":", " ").split())
            if len(values) == 4:
                break
        missing = [name for name in ("H", "W", "FPS", "CROP") if not values.get(name)]
        if missing:
            raise ValueError(f"no {', '.join(missing)} line")
        if len(values["CROP"]) < 4:
            raise ValueError(f"CROP has {len(values['CROP'])} of 4 numbers")
        # Values are the last words of a line: some styles have text before them.
        width, height = (whole_number(values[name][-1], f"the {name} line", 1) for name in ("W", "H"))
        fps = decimal_number(values["FPS"][-1], "the FPS line", 1, 1000)
        x0, y0, x1, y1 = (whole_number(value, "the CROP line") for value in values["CROP"][-4:])
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"CROP {x0} {y0} {x1} {y1} is empty")
        return cls(width=width, height=height, fps=fps, crop=(float(x0), float(y0), float(x1), float(y1)))


def _meta_files(folder: MetadataFolder, problems: Problems) -> Iterator[tuple[str, bytes]]:
    """Name and content of each per-clip file below a folder and in the zips in it (or in a single zip)."""
    path = folder.path
    # Sorted, because the first of two files with one name is taken.
    if path.is_file():
        zips, texts = [path], []
    else:
        zips, texts = sorted(path.glob("*.zip")), sorted(itertools.islice(path.rglob("Clip+*.txt"), MOST_CLIPS + 1))
    if len(texts) > MOST_CLIPS:
        raise ValueError(f"{path} has more than {MOST_CLIPS:,} files Clip+….txt: it is not the metadata of VFHQ")
    for file in texts:
        try:
            yield file.name, folder.read(file, MEMBER_BYTES)
        except ValueError as error:
            problems.append(Problem(file=file.name, message=str(error)))
    for file in zips:
        try:
            yield from folder.zip_members(file, _META_FILE, problems)
        except ValueError as error:
            # Another zip that lies there, such as a release of clips, is no metadata.
            if file in (path, path / META_ZIP):
                raise
            problems.append(Problem(file=file.name, message=str(error)))


def read_clips(
    folder: MetadataFolder,
) -> tuple[dict[VfhqName, tuple[VfhqMeta | None, str | None]], Problems]:
    """Clip name → (content of its meta file, name of the list that holds it), either may be None; and the problems."""
    # Meta files: the same clip may be there unpacked and in the zip, which is fine while both agree.
    problems = Problems(MOST_BAD_LINES)
    metas: dict[VfhqName, VfhqMeta] = {}
    for file, content in _meta_files(folder, problems):
        try:
            name = VfhqName.parse(file.removesuffix(".txt"))
            meta = VfhqMeta.parse(content.decode("utf-8", "replace"))
            if metas.setdefault(name, meta) != meta:
                raise ValueError("there twice with different content; the first is taken")
        except ValueError as error:
            problems.append(Problem(file=file, message=str(error)))
    # Lists of names: they add clips without a meta file, whose only source is a released clip.
    lists: dict[VfhqName, str] = {}
    for file in LIST_FILES if folder.path.is_dir() else ():
        if not (folder.path / file).is_file():
            continue
        for number, text in folder.lines(folder.path / file, problems):
            try:
                name = VfhqName.parse(text.removesuffix(".txt"))
                if name in lists:
                    raise ValueError(f"{text} stands in {lists[name]} already")
                lists[name] = file
            except ValueError as error:
                problems.append(Problem(file=file, line=number, message=str(error)))
    return {name: (metas.get(name), lists.get(name)) for name in dict.fromkeys((*metas, *lists))}, problems


def read(metadata: Path, listing: SourceListing) -> Parsed:
    """Catalog rows of all clips."""
    clips, problems = read_clips(MetadataFolder(metadata, listing.follow_links))
    rows = collect_rows(
        clips.items(),
        lambda clip: _row(clip[0], *clip[1], listing),
        lambda clip: (clip[0].text, None),
        problems,
    )
    return Parsed(rows=rows, problems=problems)


def _row(name: VfhqName, meta: VfhqMeta | None, where: str | None, listing: SourceListing) -> CatalogRow:
    """Catalog row of one clip; the choice of its source decides about interval, crop and notes."""
    # The YouTube video first, for it alone gives the official interval and crop; then a released clip.
    source, notes = listing.find([name.video_id]) if meta else (None, ())
    released = False
    if source is None:
        source, notes = listing.find([name.text])
        released = source is not None
    # A released clip is a video or a folder of frames, which has no rate of its own.
    frames = released and source in listing.unit_folders
    fps = meta.fps if meta else None
    if released:
        notes += (NOTE,)
        if frames and fps is None:
            notes += (f"no meta file gives the rate of the frames; {DEFAULT_FRAME_FPS:g} fps assumed",)
    elif meta is None:
        notes += ("no meta file, so no rate and no crop: only a released clip can be its source",)
    # Interval and crop hold for the YouTube video only.
    cut = meta if not released else None
    return VFHQ.row(
        name.key,
        name.video_id,
        source=source,
        # frames first + 1 .. last - 1, end exclusive, in seconds
        interval=((name.first + 1) / cut.fps, name.last / cut.fps) if cut else None,
        box=cut.crop if cut else None,
        box_size=(float(cut.width), float(cut.height)) if cut else None,
        frame_fps=(fps or DEFAULT_FRAME_FPS) if frames else None,
        person=f"{name.video_id}-P{name.person}",
        notes=notes,
        attributes={
            "frames": [name.first, name.last],
            "person_index": name.person,
            "clip_index": name.clip,
            "list": where,
            "fps": fps,
        },
    )


def has_metadata(path: Path) -> bool:
    """Whether a folder holds per-clip files, `meta_info.zip` or a list, or a file is a zip."""
    if path.is_file():
        return path.suffix.lower() == ".zip"
    return (
        any((path / file).is_file() for file in (*LIST_FILES, META_ZIP))
        or next(path.rglob("Clip+*.txt"), None) is not None
    )


def is_unit_folder(name: str) -> bool:
    """Whether a folder is one input: named like a clip (a folder of frames), or like a video."""
    return CLIP_NAME.fullmatch(name) is not None or has_video_suffix(name)


ADAPTER = Adapter(
    dataset=VFHQ.dataset,
    read=read,
    official_files="meta_info.zip, or its Clip+….txt files, or id_train.txt / id_test.txt",
    has_metadata=has_metadata,
    is_unit_folder=is_unit_folder,
)
