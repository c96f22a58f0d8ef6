"""The folder of a private Ray: its sockets, logs and packages, for this user alone, and gone with the process.

Ray gives all of these to everybody, wherever it is told to put them. So its folder lies in one that only this user can
enter. The folder of a process that is killed stays; the next private Ray of the user sweeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "th-ray-"  # short: the names of sockets have a limit
_NAME = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")  # as tempfile makes them
_LONGEST_PARENT = 107 - len(f"/{_PREFIX}12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""Bytes that the path of the folder's parent may have, so that the sockets' names have at most 107."""
_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_TRIES = 100


@dataclass(frozen=True)
class RayFolder:
    """A new folder that is locked as long as this process lives, or another one to which it gives the lock."""

    path: Path
    """Folder that only this user can enter."""
    lock: int
    """File descriptor of the folder. Processes that this one starts inherit it only where they are given it."""

    @property
    def temporary(self) -> Path:
        """Folder for Ray, which opens it to everybody."""
        return self.path / "r"

    @staticmethod
    def is_named(path: Path) -> bool:
        """Whether a path has a name that is made here."""
        return _NAME.fullmatch(path.name) is not None

    def remove(self) -> None:
        """Remove the folder, when Ray has ended."""
        remove_ray_folder(self.path)
        os.close(self.lock)


def remove_ray_folder(path: Path) -> None:
    """Remove the folder of a Ray that has ended."""
    # Its last processes may still be writing their logs.
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            break
        time.sleep(0.02)


def make_ray_folder() -> RayFolder:
    """Make a folder for a private Ray, and remove those of processes that are gone.

    Raises:
        ValueError: There is no place for it.
        OSError: The place has no room.
    """
    parent = _parent()
    sweep(parent)
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        # Before it is locked, the sweep of another process may take it for a killed one's.
        try:
            fcntl.flock(lock, _LOCK)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:
            pass  # a file system without locks: a sweep cannot lock the folder either, and leaves it
        if path.exists():
            return RayFolder(path, lock)
        os.close(lock)
    raise ValueError(f"cannot make a folder in {parent} that stays there")


def sweep(parent: Path) -> None:
    """Remove the folders that killed processes of this user have left: ours by name and owner, and not locked."""
    for path in parent.iterdir():
        if not _NAME.fullmatch(path.name):
            continue
        # What cannot be opened is gone, or a link, or another user's; what cannot be locked is in use.
        with contextlib.suppress(OSError):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, _LOCK)
                    shutil.rmtree(path, ignore_errors=True)  # follows no links
            finally:
                os.close(folder)


def _parent() -> Path:
    """Folder for temporary files with a path that is short enough, best one in which nobody can exchange what is ours.

    Raises:
        ValueError: There is none.
    """
    wanted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).resolve()
    places = [place for place in (wanted, Path("/tmp").resolve()) if len(os.fsencode(place)) <= _LONGEST_PARENT]
    places = [place for place in places if place.is_dir() and os.access(place, os.W_OK | os.X_OK)]
    if not places:
        raise ValueError(
            f"no place for the files of Ray: neither {wanted} nor /tmp is a folder to write in with a path of at most"
            f" {_LONGEST_PARENT} bytes; set TMPDIR to one"
        )
    for place in places:
        if not any(_open_to_others(folder) for folder in (place, *place.parents)):
            return place
    log.warning("other users may rename files in %s, those of Ray too; set TMPDIR to a folder of yours", places[0])
    return places[0]


def _open_to_others(folder: Path) -> bool:
    """Whether other users may rename or replace what this user makes in a folder."""
    mode = folder.stat().st_mode
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not mode & stat.S_ISVTX
