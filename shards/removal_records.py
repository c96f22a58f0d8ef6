"""Records of removals in DATA: proof of what was taken out, and the list by which it does not come back.

    removed/<time>-<8 digits>.json   one removal: counts before and after, the runs that may have read the samples, and
                                     hashes of the keys, contents and persons; written once, never changed
    removed/pending.json             a removal or collection that is under way; the next command that writes finishes it

No record holds a name: keys are made of file names, and those often of persons' names. The hashes are salted, for each
removal anew, so that two of them cannot be compared; but whoever has DATA and guesses a name can find out whether the
guess is right.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from talkinghead.config import from_json, shown
from talkinghead.files.foreign import parse_json, read_limited
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json
from talkinghead.schema import KEY_PATTERN

FOLDER = "removed"
PENDING = f"{FOLDER}/pending.json"
RECORD_BYTES = 256 << 20
"""Largest record that is read: that of some million samples."""
KEY_FILE_BYTES = 256 << 20
"""Largest file of keys that is read."""
SCHEMA_VERSION = 1
REASON = "removed"
"""Reason of the rejection of an input that was taken out."""

_MOMENT_S = 0.02
"""Seconds by which two pieces of a source must overlap to show the same: half a frame."""
_RECORD = re.compile(rf"{FOLDER}/\d{{8}}T\d{{6}}Z-[0-9a-f]{{8}}\.json")
_DIGEST = re.compile("[0-9a-f]{32}")

Kind = Literal["key", "clip", "content", "person"]
"""What a hash is of: a sample's key, a clip's key, the content of a source with its interval, a person or group."""


@dataclass(frozen=True, kw_only=True)
class VersionCounts:
    """Counts of one version's index before and after a removal."""

    version: str
    samples: tuple[int, int]
    """Samples before and after."""
    kept: tuple[int, int]
    """Samples that the filters keep, before and after."""
    splits: dict[str, tuple[int, int]]
    """Split → samples before and after."""
    shards: dict[str, tuple[int, int]]
    """Number of each shard that held one of them → samples before and after."""


@dataclass(frozen=True, kw_only=True)
class RunThatRead:
    """A run of training that has pinned an index which listed the samples."""

    host: str
    run: str
    seen: int | None
    """Number of the removed samples that it has learnt from; None: not known here."""
    steps: int | None
    """Steps up to which that was counted."""
    note: str = ""
    """Why it is not known."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece that was taken out of a clip whose other pieces stay. It is known by its place in the source: other
    settings may cut the same moment into a piece of another key."""

    key: str
    """In a record: hash of the key; and so the content."""
    content: str | None = None
    """SHA-256 of the source; None: not known."""
    start_s: float | None = None
    """Where it began in the source; None: not known."""
    end_s: float | None = None

    def __post_init__(self) -> None:
        if (self.start_s is None) != (self.end_s is None):
            raise ValueError("a piece has half an interval")


@dataclass(frozen=True, kw_only=True)
class RemovalRecord:
    """One removal that is done."""

    time: str
    """UTC, ISO 8601."""
    removed: int
    """Number of packed samples that were taken out."""
    unpacked: int
    """Number of samples that ingest had made and that were in no shard."""
    inputs: int
    """Number of inputs that are rejected as a whole from now on."""
    versions: list[VersionCounts]
    fits: list[str] = field(default_factory=list)
    """Names of the global fits that were made of the samples and are gone with them."""
    runs: list[RunThatRead] = field(default_factory=list)
    salt: str
    keys: list[str] = field(default_factory=list)
    """Hashes of the samples' keys, sorted; and so the following."""
    clips: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    persons: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    """Those of the samples whose clips stay in part."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"it has schema {self.schema_version}, this code reads {SCHEMA_VERSION}")
        of_pieces = [text for piece in self.pieces for text in (piece.key, piece.content) if text is not None]
        for hashes in (self.keys, self.clips, self.contents, self.persons, of_pieces):
            if not all(map(_DIGEST.fullmatch, hashes)):
                raise ValueError("it holds what is no hash")


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A removal or a collection that is under way. It names what is removed, and goes when that is done."""

    job: Literal["remove", "gc"]
    path: str = ""
    """Path of the record that the removal will have."""
    time: str = ""
    salt: str = ""
    samples: list[str] = field(default_factory=list)
    """Keys of the samples, packed or not."""
    clips: list[str] = field(default_factory=list)
    """Keys of the clips that are rejected as a whole."""
    contents: list[str] = field(default_factory=list)
    """Content and interval of each of these."""
    persons: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    """Samples whose clips stay in part."""
    names: list[str] = field(default_factory=list)
    """Names of the clips' sources, as the catalogs and messages write them."""
    fits: dict[str, str] = field(default_factory=dict)
    """Name of each global fit that was made of the samples → path of its file."""
    counts: list[VersionCounts] = field(default_factory=list)
    """Counts before the removal, and those that it must lead to."""
    runs: list[RunThatRead] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Shards, old and new: those of them that nothing names at the end are removed."""


def new_pending(**content: Any) -> Pending:
    """A removal that begins now."""
    now = datetime.now(UTC)
    path = f"{FOLDER}/{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json"
    return Pending(
        job="remove", path=path, time=now.isoformat(timespec="seconds"), salt=secrets.token_hex(16), **content
    )


def write_pending(storage: Storage, pending: Pending) -> None:
    """Note what is under way, before anything else is written."""
    storage.write(PENDING, pretty_json(asdict(pending)))


def find_pending(storage: Storage) -> Pending | None:
    """What is under way, left by a command that was killed; None where there is nothing.

    Raises:
        ValueError: The note is damaged.
    """
    if not storage.exists(PENDING):
        return None
    name = storage.describe(PENDING)
    try:
        pending = from_json(Pending, parse_json(storage.read(PENDING, RECORD_BYTES, "note"), "it"))
        if pending.job == "remove" and not _RECORD.fullmatch(pending.path):
            raise ValueError("it names no record")
    except ValueError as error:
        raise ValueError(f"{name} is no note of a removal ({error}): bring back a copy of DATA") from error
    return pending


def digest(salt: str, kind: Kind, value: str) -> str:
    """Hash under which a record knows something."""
    return hashlib.sha256(f"{salt}:{kind}:{value}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def digests(salt: str, kind: Kind, values: Iterable[str]) -> list[str]:
    """Hashes of several, sorted."""
    return sorted({digest(salt, kind, value) for value in values})


def hashed(salt: str, piece: Piece) -> Piece:
    """A piece as a record knows it."""
    content = None if piece.content is None else digest(salt, "content", piece.content)
    return replace(piece, key=digest(salt, "key", piece.key), content=content)


def write_record(storage: Storage, path: str, record: RemovalRecord) -> None:
    """Write the record of a removal, unless a killed command has written it."""
    storage.create(path, pretty_json(asdict(record)))


def read_keys(file: Path) -> list[str]:
    """Keys out of a text file with one a line.

    Raises:
        ValueError: A line is no key, or there is none.
    """
    try:
        text = read_limited(file, KEY_FILE_BYTES, "list of keys").decode("utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {file}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text file with a key in each line") from error
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"{file} names no key")
    for key in keys:
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"{file}: {shown(key)} is no key: write one a line, as python -m shards ls shows them")
    return keys


class RemovalList:
    """Everything that was ever removed from a DATA.

    Args:
        storage: DATA.

    Raises:
        ValueError: A record is damaged: what was removed might come back.
    """

    def __init__(self, storage: Storage) -> None:
        self.records: list[RemovalRecord] = []
        """Records in the order of their times."""
        for file in storage.list(FOLDER, ".json"):
            if _RECORD.fullmatch(file.path):
                self.records.append(_read(storage, file.path))
        self._known: dict[str, list[tuple[str, frozenset[str]]]] = {
            kind: [(record.salt, frozenset(getattr(record, f"{kind}s"))) for record in self.records]
            for kind in ("key", "clip", "content", "person")
        }
        self._pieces: list[tuple[str, dict[str, Piece], dict[str, list[Piece]]]] = []
        for record in self.records:
            by_content: dict[str, list[Piece]] = {}
            for piece in record.pieces:
                if piece.content is not None and piece.start_s is not None:
                    by_content.setdefault(piece.content, []).append(piece)
            if record.pieces:
                self._pieces.append((record.salt, {piece.key: piece for piece in record.pieces}, by_content))

    def __bool__(self) -> bool:
        return bool(self.records)

    def has(self, kind: Kind, value: str) -> bool:
        """Whether something was removed."""
        return any(hashes and digest(salt, kind, value) in hashes for salt, hashes in self._known[kind])

    @property
    def has_pieces(self) -> bool:
        """Whether a clip has lost some of its pieces, and stays."""
        return bool(self._pieces)

    def has_pieces_of(self, content: str | None) -> bool:
        """Whether a piece was taken out of a source with this SHA-256, whose place in it is known."""
        return content is not None and any(
            digest(salt, "content", content) in by_content for salt, _, by_content in self._pieces
        )

    def has_piece(self, key: str, content: str | None, interval: tuple[float, float] | None) -> bool:
        """Whether a piece of a clip that stays was removed: what shows a moment of it, else what has its key.

        Args:
            key: Key of the piece as it is cut now.
            content: SHA-256 of its source; None: not known.
            interval: Where it begins and ends in the source, in seconds; None: not known.
        """
        for salt, by_key, by_content in self._pieces:
            here = [] if content is None else by_content.get(digest(salt, "content", content), [])
            if interval is not None and any(_overlap(piece, interval) for piece in here):
                return True
            # By its key only where the two cannot be compared by their places.
            piece = by_key.get(digest(salt, "key", key))
            if piece is not None and (interval is None or piece not in here):
                return True
        return False


def _overlap(piece: Piece, interval: tuple[float, float]) -> bool:
    """Whether a piece and an interval of the same source have a moment in common."""
    assert piece.start_s is not None and piece.end_s is not None
    return interval[0] < piece.end_s - _MOMENT_S and piece.start_s < interval[1] - _MOMENT_S


def _read(storage: Storage, path: str) -> RemovalRecord:
    try:
        return from_json(RemovalRecord, parse_json(storage.read(path, RECORD_BYTES, "record"), "it"))
    except ValueError as error:
        raise ValueError(
            f"{storage.describe(path)} is no record of a removal ({error}): bring back a copy of it, else what was"
            " removed might come back"
        ) from error
