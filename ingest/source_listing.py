"""Listing of SOURCE: every file, without reading any; lookup of a video by its name; file names as text.

Hidden files and folders are left out. Links are followed inside SOURCE (outside it only when the user says so), each
folder is read once: folders that are reached without a link come first, so a link back to a parent ends nowhere and a
second way to a folder is listed as a problem.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ingest.source_files import SPECIAL, is_inside, leads_out, not_worth_reading
from talkinghead.runtime.errors import is_machine_error

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".ts", ".m2ts", ".mts"),
    *(".mpg", ".mpeg", ".3gp", ".ogv", ".mxf"),
)
"""Suffixes of video containers, best first: where two files have the name of one video, the earlier suffix is taken."""

SOUND_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".m4a", ".aac", ".opus", ".oga", ".wma", ".aif", ".aiff", ".aifc", ".amr", ".ac3"),
    *(".caf", ".mka", ".m4b", ".sph", ".w64", ".au"),
)
"""Suffixes of files that hold sound alone; not `.ogg`, which may hold video, too."""
_COMPANION_SUFFIXES = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".md", ".srt", ".vtt", ".lab", ".textgrid", ".trans"),
    *(".jpg", ".jpeg", ".png", ".webp", ".pdf"),
)  # of files that lie next to sound or video, and are neither

BRACKETED_ID = re.compile(r"\[([A-Za-z0-9_-]{11})\]$")
"""End of a stem as yt-dlp names files by default: `Title [<YouTube id>].mp4`."""


LISTED_PROBLEMS = 10_000
"""Number of problems that a catalog lists one by one."""
_SHOWN_CHARACTERS = 500  # of a text that is quoted in a problem


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A part of the metadata or of SOURCE that gives no catalog row; listed in the catalog, never dropped silently."""

    file: str
    """Name of the metadata file, or path in SOURCE."""
    line: int | None = None
    """Line in the file, counted from 1; None when the problem is not in one line."""
    message: str
    """What is wrong, for people; one line, which may quote a stranger's text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", shortened(self.file))
        object.__setattr__(self, "message", shortened(self.message))

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class Problems(list[Problem]):
    """Problems that were met, the first of them listed and the others counted: a file may have millions of them."""

    def __init__(self, most: int | None = None) -> None:
        """An empty list.

        Args:
            most: Number of problems after which `append` gives up; None: never.
        """
        super().__init__()
        self._most = most
        self._count = 0

    def append(self, problem: Problem) -> None:
        """Add a problem.

        Raises:
            ValueError: There are too many; the message names the file.
        """
        self._count += 1
        if self._count <= LISTED_PROBLEMS:
            super().append(problem)
        elif self._count == LISTED_PROBLEMS + 1:
            super().append(Problem(file=problem.file, message="there are further problems, which are not listed"))
        if self._most is not None and self._count > self._most:
            raise ValueError(f"{problem.file}: more than {self._most:,} lines cannot be read; it is no such metadata")


def has_video_suffix(name: str) -> bool:
    """Whether a file name ends like a video container."""
    return name.lower().endswith(VIDEO_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class SourceListing:
    """The files below SOURCE, relative to it, with forward slashes; undecodable bytes as `surrogateescape`."""

    files: tuple[str, ...]
    """Regular files and broken links, sorted."""
    unit_folders: tuple[str, ...] = ()
    """Folders that are one input themselves (`x.mp4/`, a folder of frames), sorted; their content is not listed."""
    problems: tuple[Problem, ...] = field(default=())
    """Links, folders and special files that are not read."""
    follow_links: bool = False
    """Whether links may lead out of SOURCE, and out of the folder of the metadata."""

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Name without suffix (and YouTube id in brackets) → paths of videos and unit folders."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in (*self.videos, *self.unit_folders):
            name = path.rpartition("/")[2]
            stem = name[: name.rindex(".")] if has_video_suffix(name) else name
            found[stem].append(path)
            if match := BRACKETED_ID.search(stem):
                found[match[1]].append(path)
        return dict(found)

    @cached_property
    def videos(self) -> tuple[str, ...]:
        """Files that are named like a video."""
        return tuple(path for path in self.files if has_video_suffix(path))

    @cached_property
    def sounds(self) -> tuple[str, ...]:
        """Files that are named like sound."""
        return tuple(path for path in self.files if path.lower().endswith(SOUND_SUFFIXES))

    def check_not_sound_alone(self, source: Path) -> None:
        """Raise `ValueError` when SOURCE holds sound, and nothing that may be a video; names are all that is asked."""
        plain = (*SOUND_SUFFIXES, *_COMPANION_SUFFIXES)
        if self.sounds and not self.unit_folders and all(path.lower().endswith(plain) for path in self.files):
            raise ValueError(
                f"SOURCE {display_path(str(source))} holds {_sound_files(self.sounds)} and no video: clips are cut out"
                " of videos, with the sound that is in them. Name the folder with the videos"
            )

    def candidates(self, stem: str) -> list[str]:
        """Videos and unit folders whose name without suffix is `stem`, best first (suffix, then path)."""
        return sorted(self._by_stem.get(stem, ()), key=_preference)

    def find(self, stems: Iterable[str]) -> tuple[str | None, tuple[str, ...]]:
        """The first video that has one of the names (else None), and a note when others would have fitted as well."""
        for stem in stems:
            found = self.candidates(stem)
            if found:
                others = [display_path(path) for path in found[1:]]
                return found[0], ((f"also found and not used: {', '.join(others)}",) if others else ())
        return None, ()

    def unused(self, used: Collection[str]) -> tuple[str, ...]:
        """Videos and unit folders that are not among `used`."""
        return tuple(path for path in sorted((*self.videos, *self.unit_folders)) if path not in used)


def _preference(path: str) -> tuple[int, str]:
    lower = path.lower()
    rank = next((i for i, suffix in enumerate(VIDEO_SUFFIXES) if lower.endswith(suffix)), len(VIDEO_SUFFIXES))
    return rank, path


def list_source(
    source: Path,
    *,
    is_unit_folder: Callable[[str], bool] = has_video_suffix,
    exclude: Iterable[Path] = (),
    follow_links: bool = False,
) -> SourceListing:
    """List everything below SOURCE.

    Args:
        source: Folder with the videos.
        is_unit_folder: Function from a folder's name to whether the folder is one input itself.
        exclude: Folders to leave out, e.g. DATA when it lies inside SOURCE.
        follow_links: Whether links may lead out of SOURCE.

    Raises:
        ValueError: SOURCE is not a folder, or is one of `exclude`.
    """
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise ValueError(f"SOURCE {display_path(str(source))} {what}; name the folder that holds the videos")
    # Compared by resolved paths, because a link may lead to DATA.
    left_out = {path.resolve() for path in exclude}
    if source.resolve() in left_out:
        raise ValueError(f"SOURCE and DATA are both {display_path(str(source))}; name another folder for DATA")
    walk = _Walk(source, is_unit_folder, left_out, follow_links)
    walk.run()
    walk.note_sounds()
    return SourceListing(
        files=tuple(sorted(walk.files)),
        unit_folders=tuple(sorted(walk.unit_folders)),
        problems=tuple(sorted(walk.problems, key=lambda problem: problem.file)),
        follow_links=follow_links,
    )


class _Walk:
    """A walk through SOURCE: real folders first, then linked ones, in sorted order."""

    def __init__(
        self, source: Path, is_unit_folder: Callable[[str], bool], exclude: set[Path], follow_links: bool
    ) -> None:
        self.source = str(source)
        self.real_source = source.resolve()
        self.is_unit_folder = is_unit_folder
        self.exclude = exclude
        self.follow_links = follow_links
        self.files: list[str] = []
        self.unit_folders: list[str] = []
        self.problems = Problems()
        self._seen: set[tuple[int, int]] = set()  # device and inode of each folder that was read
        self._links: list[str] = []  # folders reached through a link, still to be read

    def run(self) -> None:
        # A link is followed only when no real folder is left: a folder is then listed under its own name, and a link
        # back to a parent finds it read already.
        pending = [""]
        while pending or self._links:
            if not pending:
                self._links.sort(reverse=True)
                pending.append(self._links.pop())
            pending.extend(self._read_folder(pending.pop()))

    def note_sounds(self) -> None:
        """List sound files as one problem: people put them next to their videos, and expect them to be used."""
        sounds = sorted(path for path in self.files if path.lower().endswith(SOUND_SUFFIXES))
        if sounds:
            among = "" if len(sounds) == 1 else f", one of {_sound_files(sounds)} in SOURCE"
            self._problem(sounds[0], f"is sound without video{among}: a clip's sound is that of its video file")

    def _problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(file=display_path(path) or ".", message=message))

    def _read_folder(self, folder: str) -> list[str]:
        """Note the files of one folder; return its real sub-folders, last first (the pending list is a stack)."""
        full = os.path.join(self.source, folder)  # noqa: PTH118 - a name may be undecodable or end in a blank
        try:
            status = os.stat(full)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in self._seen:
                self._problem(folder, "a link to a folder that is read under another name; not read again")
                return []
            self._seen.add((status.st_dev, status.st_ino))
            if self.exclude and Path(full).resolve() in self.exclude:
                return []
            with os.scandir(full) as entries:
                found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if is_machine_error(error):
                raise  # not without the clips in it
            self._problem(folder, f"folder cannot be read: {error.strerror}")
            return []
        return [path for entry in reversed(found) if (path := self._place(folder, entry)) is not None]

    def _place(self, folder: str, entry: os.DirEntry[str]) -> str | None:
        """Put one entry into the list where it belongs; return its path when it is a real folder to go into."""
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_symlink() and not self.follow_links and not is_inside(self.real_source, entry.path):
            self._problem(path, leads_out(os.path.realpath(entry.path)))
            return None
        try:
            status = entry.stat()
        except OSError:  # a broken link, or a link to itself: an input that cannot be opened
            self.files.append(path)
            return None
        mode = status.st_mode
        if stat.S_ISREG(mode):
            if reason := not_worth_reading(Path(entry.path), status):
                self._problem(path, reason)
            else:
                self.files.append(path)
        elif not stat.S_ISDIR(mode):
            self._problem(path, SPECIAL)
        elif self.is_unit_folder(entry.name):
            self.unit_folders.append(path)
        elif entry.is_symlink():
            self._links.append(path)
        else:
            return path
        return None


def _sound_files(paths: Collection[str]) -> str:
    """Number and kinds of sound files in words: `3 sound files (.flac, .wav)`."""
    suffixes = sorted({path[path.rindex(".") :].lower() for path in paths})
    return f"{len(paths):,} sound file{'' if len(paths) == 1 else 's'} ({', '.join(suffixes)})"


def to_stored(path: str) -> str:
    """A path in a form that Parquet can hold: the path itself when it is valid Unicode. Inverse: `from_stored`.

    Python holds the bytes of a POSIX name that are not valid UTF-8 as lone surrogates (`surrogateescape`), which UTF-8,
    and so Parquet, cannot hold. A name cannot contain NUL, so NUL followed by two hexadecimal digits stands for such a
    byte.
    """
    return re.sub("[\udc80-\udcff]", lambda match: f"\0{ord(match[0]) - 0xDC00:02x}", path)


def from_stored(text: str) -> str:
    """Inverse of `to_stored`."""
    return re.sub("\0([0-9a-f]{2})", lambda match: chr(0xDC00 + int(match[1], 16)), text)


def display_path(path: str) -> str:
    """A path for people to read: undecodable bytes and control characters (newlines too) as backslash escapes."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shortened(text: str) -> str:
    """A stranger's text in one printable line, cut off where it is long."""
    line = display_path(text[: _SHOWN_CHARACTERS + 1])
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
