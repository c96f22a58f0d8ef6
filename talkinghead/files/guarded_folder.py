"""Writing and removing files below a folder that may be a stranger's: no link leads such a call out of it.

A check of a path alone would not do: who may write to the folder can put a link in its place just after. So every
folder on the way is opened from the one above it, which fails at a link, and files are made, renamed and removed in
the folder that is open, whatever its name has become meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from talkinghead.files.foreign import link_error

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class GuardedFolder:
    """A folder in which files are written whole and removed, but never through a link.

    Paths are relative, with forward slashes, and do not lead upwards.

    Args:
        root: The folder, which the user named: it may be a link itself, or be reached through one.
        linked: Names in it that may be links to folders, because the user said so.
        advice: End of the message about a link directly in it.
    """

    def __init__(self, root: Path, linked: Collection[str] = (), advice: str = "") -> None:
        self.root = root
        self.linked = frozenset(linked)
        self.advice = advice

    @contextlib.contextmanager
    def opened(self, folder: str, *, make: bool = False) -> Iterator[int]:
        """File descriptor of a folder, for the block.

        Args:
            folder: Path of the folder; empty for the root.
            make: Whether to make folders that are not there, the root too.

        Raises:
            LinkError: A part of the path is a link.
            ValueError: The path is absolute, or leads upwards.
            OSError: There is no such folder, or it cannot be read or made.
        """
        # Text rather than `Path`, whose making would cost as much as the calls: every record is written this way.
        parts = [part for part in folder.split("/") if part not in ("", ".")]
        if ".." in parts or folder.startswith("/"):
            raise ValueError(f"path {folder!r} leaves {self.root}")
        descriptor = self._open_root(make)
        try:
            for depth in range(len(parts)):
                inner = self._enter(descriptor, parts[: depth + 1], make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_root(self, make: bool) -> int:
        try:
            return os.open(self.root, _OPEN_FOLDER)
        except FileNotFoundError:
            if not make:
                raise
            self.root.mkdir(parents=True, exist_ok=True)
            return os.open(self.root, _OPEN_FOLDER)

    def _enter(self, above: int, parts: Sequence[str], make: bool) -> int:
        """Open the folder `parts[-1]` of an open folder."""
        name = parts[-1]
        may_be_link = len(parts) == 1 and name in self.linked
        flags = _OPEN_FOLDER if may_be_link else _OPEN_FOLDER | os.O_NOFOLLOW
        try:
            try:
                return os.open(name, flags, dir_fd=above)
            except FileNotFoundError:
                if not make:
                    raise
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.mkdir(name, dir_fd=above)
            return os.open(name, flags, dir_fd=above)
        except OSError as error:
            path = self.root.joinpath(*parts)
            # Linux says of a link here that it is no folder.
            if isinstance(error, NotADirectoryError) and not may_be_link and path.is_symlink():
                raise link_error(path, self.advice if len(parts) == 1 else "") from None
            raise _whole(error, path) from error

    @contextlib.contextmanager
    def new_file(self, folder: str) -> Iterator[NewFile]:
        """A new empty file with a random name in a folder, which is made; it is removed unless it takes another name.

        Raises:
            LinkError: A part of the path is a link.
            OSError: The folder cannot be written.
        """
        name = uuid.uuid4().hex
        with self.opened(folder, make=True) as place:
            try:
                descriptor = os.open(name, _NEW_FILE, 0o666, dir_fd=place)
            except OSError as error:
                raise _whole(error, self.root / folder) from error
            file = NewFile(descriptor, self, place, name)
            try:
                yield file
            finally:
                os.close(descriptor)
                if not file.renamed:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=place)

    def remove(self, path: str) -> None:
        """Remove a file, or a link that has its name; no error when there is none.

        Raises:
            LinkError: A folder of the path is a link.
            OSError: It is a folder, or cannot be removed.
        """
        above, name = os.path.split(path)
        with contextlib.suppress(FileNotFoundError), self.opened(above) as folder:
            try:
                os.unlink(name, dir_fd=folder)
            except OSError as error:
                raise _whole(error, self.root / path) from error

    def file_names(self, folder: str) -> list[str]:
        """Names of the regular files directly in a folder; none when it is not there.

        Raises:
            LinkError: A part of the path is a link.
        """
        try:
            with self.opened(folder) as place, os.scandir(place) as entries:
                return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except FileNotFoundError:
            return []


@dataclass
class NewFile:
    """A file of `GuardedFolder.new_file`, open for writing, until it has its final name."""

    descriptor: int
    _folder: GuardedFolder
    _place: int
    """Descriptor of the folder that it is in."""
    _name: str
    renamed: bool = False

    def write(self, data: bytes) -> None:
        """Write its whole content, and flush that to the disk."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]
        os.fsync(self.descriptor)

    def replace(self, path: str) -> None:
        """Rename it, so that it takes the place of a file or a link that has the name; folders are made.

        Raises:
            LinkError: A folder of the path is a link.
            OSError: A folder has the name, or it cannot be written there.
        """
        above, name = os.path.split(path)
        with self._folder.opened(above, make=True) as folder:
            try:
                os.rename(self._name, name, src_dir_fd=self._place, dst_dir_fd=folder)
            except OSError as error:
                raise _whole(error, self._folder.root / path) from error
            self.renamed = True
            os.fsync(folder)

    def take(self, path: str) -> bool:
        """Give it a second name if that is free; returns whether it was. Folders are made.

        Raises:
            LinkError: A folder of the path is a link.
            OSError: It cannot be written there.
        """
        above, name = os.path.split(path)
        with self._folder.opened(above, make=True) as folder:
            try:
                # A hard link, unlike a rename, fails where the name is taken. Not to what a link leads to, which
                # somebody may have put in our file's place.
                os.link(self._name, name, src_dir_fd=self._place, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                # A file server whose answer was lost says so to the second request: a second name tells (link(2)).
                if os.fstat(self.descriptor).st_nlink < 2:
                    return False
            except OSError as error:
                raise _whole(error, self._folder.root / path) from error
            os.fsync(folder)
        return True


def _whole(error: OSError, path: Path) -> OSError:
    """The error with a whole path: calls in an open folder know the last name only."""
    return OSError(error.errno, error.strerror, str(path))
