"""Pins: which versions and fits a run of training reads, so that nobody removes them while it needs them.

A run writes one small file into DATA before it reads a sample. A run that goes on writes the same file again. Nothing
is kept alive by a pin alone: `shards drop` asks them, and whoever removes files by hand does not.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from talkinghead import dataroot
from talkinghead.config import from_json, shown
from talkinghead.files.foreign import LinkError, parse_json
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json
from talkinghead.runtime.errors import error_text, one_line
from talkinghead.schema import check_version

log = logging.getLogger(__name__)

PIN_BYTES = 1 << 20
"""Largest pin that is read."""
SCHEMA_VERSION = 1
"""Version of the form of a pin."""

_FOLDER = "pins"
_PATH = re.compile(rf"{_FOLDER}/[0-9a-f]{{16}}\.json")
_SHA256 = re.compile("[0-9a-f]{64}")
_LONGEST = 5000  # characters of a host's name, a folder or a URI
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What one run of training reads of a data set."""

    host: str
    """Name of the machine that wrote it; several machines of one run share a folder, and one of them writes."""
    run: str
    """The run's folder, absolute, or its URI without credentials."""
    versions: tuple[str, ...]
    """Annotation versions and versions of derived columns, sorted."""
    fits: tuple[str, ...] = ()
    """SHA-256 of the global fits' files, sorted."""
    indexes: tuple[str, ...] = ()
    """Paths of the versions' indexes, sorted: they tell what the run has learnt from. Older pins have none."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"it has schema {self.schema_version}, this code reads {SCHEMA_VERSION}")
        for text in (self.host, self.run):
            if not 0 < len(text) <= _LONGEST:
                raise ValueError(f"its host or run is {shown(text)}")
        for version in self.versions:
            check_version(version)
        for sha256 in self.fits:
            if not _SHA256.fullmatch(sha256):
                raise ValueError(f"its fit {shown(sha256)} is no SHA-256")
        for path in self.indexes:
            if not dataroot.is_index(path):
                raise ValueError(f"its index {shown(path)} is none")

    @property
    def path(self) -> str:
        """Path of its file relative to DATA."""
        return dataroot.pin(f"{self.host}:{self.run}")

    @property
    def is_gone(self) -> bool:
        """Whether the run's folder should be on this machine and is not there: nobody will need what it read."""
        if "://" in self.run or self.host != socket.gethostname():
            return False
        try:
            Path(self.run).lstat()
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENOTDIR)  # others: it cannot be looked at, and may be there
        except ValueError:  # a name that no file can have
            return True
        return False


def pin_run(
    storage: Storage, run: str, *, versions: Iterable[str], fits: Iterable[str] = (), indexes: Iterable[str] = ()
) -> None:
    """Note in DATA what a run reads, in the place of what it noted before.

    Where DATA cannot be written, this logs a warning, and the run goes on.

    Args:
        storage: Storage of the data set.
        run: The run's folder or URI.
        versions: Annotation versions and versions of derived columns that it reads.
        fits: SHA-256 of the files of the global fits that it reads.
        indexes: Paths of the indexes that it reads.
    """
    place = Storage(run, linked=())
    pin = Pin(
        host=socket.gethostname(),
        run=place.location if place.local_root else place.uri,
        versions=tuple(sorted(set(versions))),
        fits=tuple(sorted(set(fits))),
        indexes=tuple(sorted(set(indexes))),
    )
    try:
        _write(storage, pin)
    except (OSError, LinkError) as error:
        log.warning(
            "cannot note in %s what this run reads (%s): `shards drop` cannot know of this run, and may remove it",
            storage.uri,
            one_line(error_text(error)),
        )


def _write(storage: Storage, pin: Pin) -> None:
    data = pretty_json(pin)
    if _content(storage, pin.path) == data:
        return
    for turn in range(_TRIES):
        try:
            storage.write(pin.path, data)
            return
        except FileNotFoundError:
            # No lock is held here, since runs start while jobs write: a job that starts just now removes what it takes
            # for leftovers, this file's first name among them.
            if turn == _TRIES - 1:
                raise


def _content(storage: Storage, path: str) -> bytes | None:
    """Content of a pin that is there; None where there is none, or something else."""
    try:
        return storage.read(path, PIN_BYTES, "pin")
    except (FileNotFoundError, ValueError):
        return None


def pin_paths(storage: Storage) -> list[str]:
    """Paths of the files with names of pins."""
    return [file.path for file in storage.list(_FOLDER, ".json") if _PATH.fullmatch(file.path)]


def read_pin(storage: Storage, path: str) -> Pin:
    """The pin at a path.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or that of another run; the message names its file.
    """
    name = storage.describe(path)
    try:
        pin = from_json(Pin, parse_json(storage.read(path, PIN_BYTES, "pin"), "it"))
    except ValueError as error:
        raise ValueError(f"{name} is no pin of a run ({error}): remove it if no run needs it") from error
    if pin.path != path:
        raise ValueError(f"{name} is the pin of another run, {shown(pin.run)}: remove it if no run needs it")
    return pin


def read_pins(storage: Storage) -> list[Pin]:
    """Pins of a data set, by host and run. Files with other names are none.

    Raises:
        ValueError: One is damaged; the message names its file.
    """
    found = []
    for path in pin_paths(storage):
        with contextlib.suppress(FileNotFoundError):  # removed since the listing
            found.append(read_pin(storage, path))
    return sorted(found, key=lambda pin: (pin.host, pin.run))


def pinned_indexes(storage: Storage) -> set[str]:
    """Paths of the indexes that runs have pinned, also of those that nothing else names. Raises like `read_pins`."""
    return {path for pin in read_pins(storage) if not pin.is_gone for path in pin.indexes}


def forget_gone(storage: Storage) -> list[Pin]:
    """Remove the pins of runs that are gone; returns them. Raises like `read_pins`."""
    gone = [pin for pin in read_pins(storage) if pin.is_gone]
    for pin in gone:
        storage.delete(pin.path)
    return gone
