"""The rows of a batch: out of a table, or of two folders, each a request of another command."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infer.dubbing.request import DubRequest
from infer.request import AnimateRequest, AudioRequest, LandmarkRequest, VideoRequest
from talkinghead.files.foreign import read_limited

log = logging.getLogger(__name__)

RESULTS_FILE = "results.csv"
PORTRAITS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPEECHES = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".mp4", ".mov", ".mkv", ".webm")
"""Suffixes of the files that count in a folder of portraits, and in one of speeches."""
_FILES = ("reference", "audio", "driving", "video", "motion")  # options that name files to read
_TABLE_BYTES = 64 << 20
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

REQUESTS: dict[str, type[Any]] = {
    "audio": AudioRequest,
    "video": VideoRequest,
    "landmarks": LandmarkRequest,
    "animate": AnimateRequest,
    "dub": DubRequest,
}
"""Commands that a row may be of, and their options."""
_TOLD_BY = {"driver": "animate", "mouth": "animate", "renderer": "animate", "driving": "video", "video": "dub"}
"""Option → command that a row is of where it is given; the first one counts."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """A table of requests, or two folders whose files are put together."""

    table: Path | None = None
    """CSV file with a row for each video. Columns are options of the commands (reference, audio, output, steps, …);
    an empty cell leaves an option as it is. A row is of the command that its column `command` names; without one,
    with `driver`, `mouth` or `renderer` of `animate`, with `driving` of `video`, with `video` of `dub`, else of
    `audio`."""
    portraits: Path | None = None
    """Folder of portraits, in place of a table."""
    speeches: Path | None = None
    """Folder of speeches, with `portraits`."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder of the videos, with `portraits`."""
    pairs: Literal["name", "all"] = "name"
    """Which portrait speaks what: `name`: files of the same name, into NAME.mp4; `all`: every portrait every speech,
    into PORTRAIT__SPEECH.mp4."""
    set: tuple[str, ...] = ()
    """Options of every row that does not give its own: `--set weights=DIR steps=10`."""
    results: Path | None = None
    """Table of what became of each row; default: results.csv next to the table, or in the folder of the videos."""
    retry: bool = False
    """Begin rows again that were given up because they ended the process twice."""

    def check(self) -> None:
        """Check which options are given together; raises `ValueError`."""
        folders = (self.portraits, self.speeches, self.output)
        if (self.table is None) == all(folder is None for folder in folders):
            raise ValueError("give --table FILE.csv, or --portraits, --speeches and --output with a folder each")
        if self.table is None and any(folder is None for folder in folders):
            raise ValueError("two folders are put together with all of --portraits, --speeches and --output")
        if odd := [text for text in self.set if "=" not in text]:
            raise ValueError(f"--set takes NAME=VALUE, not {odd[0]!r}")
        if self.table is not None and self.results_file.absolute() == self.table.absolute():
            raise ValueError(f"the results would replace the table {self.table}: give --results another file")

    @property
    def results_file(self) -> Path:
        """File of the results."""
        folder = self.output if self.table is None else self.table.parent
        assert folder is not None, "checked"
        return self.results or folder / RESULTS_FILE


@dataclass(frozen=True, kw_only=True)
class Row:
    """One video of a batch: a command, and its options as texts."""

    number: int
    """Number from 1 on; in a table that of its line after the header."""
    options: Mapping[str, str]
    """Option → text, without empty ones."""

    @property
    def command(self) -> str:
        """Name of the command."""
        if "command" in self.options:
            return self.options["command"]
        return next((command for option, command in _TOLD_BY.items() if option in self.options), "audio")

    def request(self) -> Any:
        """The request; raises `ValueError` for a wrong option or value."""
        if self.command not in REQUESTS:
            raise ValueError(f"command is {self.command!r}, must be one of {', '.join(REQUESTS)}")
        kind = REQUESTS[self.command]
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        given = {name: text for name, text in self.options.items() if name != "command"}
        if unknown := sorted(given.keys() - fields.keys()):
            raise ValueError(f"infer {self.command} has no option {unknown[0]}")
        missing = [
            name
            for name, field in fields.items()
            if name not in given and field.default is field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ValueError(f"infer {self.command} needs {', '.join(missing)}")
        return kind(**{name: read_text(name, text, hints[name]) for name, text in given.items()})


def read_text(name: str, text: str, hint: Any) -> Any:
    """Value of an option from the text of a cell.

    Args:
        name: Name of the option, for the message.
        text: Its text. A tuple's values are parted by `;`.
        hint: Its type: a number, text, path, truth value, one of several texts, a tuple of these; or None.

    Raises:
        ValueError: The text is none of that type.
    """
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return read_text(name, text, arguments[0])
    if kind in (typing.Union, types.UnionType):
        [other] = (argument for argument in arguments if argument is not types.NoneType)
        return read_text(name, text, other)
    if kind is tuple:
        return tuple(read_text(name, part.strip(), arguments[0]) for part in text.split(";"))
    if kind is Literal:
        if text not in arguments:
            raise ValueError(f"{name} is {text!r}, must be one of {', '.join(arguments)}")
        return text
    if hint is bool:
        if text.lower() not in _TRUTH:
            raise ValueError(f"{name} is {text!r}, must be true or false")
        return _TRUTH[text.lower()]
    try:
        value = hint(text)
    except ValueError:
        what = "a whole number" if hint is int else "a number"
        raise ValueError(f"{name} is {text!r}, must be {what}") from None
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, must be a finite number")
    return value


def read_rows(request: BatchRequest) -> list[Row]:
    """All rows of a batch, in order.

    Raises:
        ValueError: The table or a folder cannot be read, names an unknown option, or two rows write the same file.
    """
    common = dict(text.split("=", 1) for text in request.set)
    found = _table_rows(request.table) if request.table is not None else _folder_rows(request)
    names = {field.name for kind in REQUESTS.values() for field in dataclasses.fields(kind)} | {"command"}
    rows = []
    for number, options in enumerate(found, 1):
        # `--limit-seconds`, `limit-seconds` and `limit_seconds` are the same option.
        clean = {
            name.strip().lstrip("-").replace("-", "_"): text.strip() for name, text in {**common, **options}.items()
        }
        if unknown := sorted(clean.keys() - names):
            raise ValueError(f"no command has the option {unknown[0]!r}, which the batch names")
        rows.append(Row(number=number, options={name: text for name, text in clean.items() if text}))
    if not rows:
        raise ValueError("the batch has no rows")
    _check_outputs(rows)
    return rows


def _table_rows(table: Path) -> Iterator[dict[str, str]]:
    """Cells of a table by the names of their columns."""
    try:
        lines = read_limited(table, _TABLE_BYTES, "table").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"the table {table} is not text in UTF-8: save it as CSV again") from error
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise ValueError(f"the table {table} is empty: its first line names the columns")
        if twice := sorted(name for name in set(header) if header.count(name) > 1):
            raise ValueError(f"the table {table} has the column {twice[0]!r} twice")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"line {reader.line_num} of the table {table} has {len(cells)} cells, its first line {len(header)}"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of the table {table} is no CSV: {error}") from error


def _folder_rows(request: BatchRequest) -> Iterator[dict[str, str]]:
    """Rows of two folders."""
    assert request.portraits is not None and request.speeches is not None and request.output is not None
    portraits, speeches = _files(request.portraits, PORTRAITS), _files(request.speeches, SPEECHES)
    if request.pairs == "name":
        if alone := sorted(portraits.keys() ^ speeches.keys()):
            log.warning(
                "warning: %d files have no file of the same name in the other folder, and are left out: %s%s",
                len(alone),
                ", ".join(alone[:5]),
                ", …" if len(alone) > 5 else "",
            )
        pairs = [(name, name, name) for name in sorted(portraits.keys() & speeches.keys())]
    else:
        every = itertools.product(sorted(portraits), sorted(speeches))
        pairs = [(portrait, speech, f"{portrait}__{speech}") for portrait, speech in every]
    for portrait, speech, name in pairs:
        yield {
            "reference": str(portraits[portrait]),
            "audio": str(speeches[speech]),
            "output": str(request.output / f"{name}.mp4"),
        }


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder with one of the suffixes, by their names without it."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        if file.stem in found:
            raise ValueError(f"{found[file.stem]} and {file} have one name: which of them is meant cannot be told")
        found[file.stem] = file
    if not found:
        raise ValueError(f"the folder {folder} has no file {', '.join('*' + suffix for suffix in suffixes)}")
    return found


def _check_outputs(rows: list[Row]) -> None:
    """Refuse two rows that write the same file, and a row that writes what another one reads."""
    read = {Path(row.options[name]).absolute(): row.number for row in rows for name in _FILES if name in row.options}
    seen: dict[Path, int] = {}
    for row in rows:
        if "output" not in row.options:
            continue  # the row fails by itself
        output = Path(row.options["output"]).absolute()
        if output in read:
            raise ValueError(f"row {row.number} would replace {output}, which row {read[output]} reads")
        # Companions differ in their suffixes only.
        place = output.with_suffix("")
        if place in seen:
            raise ValueError(f"the rows {seen[place]} and {row.number} both write {row.options['output']}")
        seen[place] = row.number
