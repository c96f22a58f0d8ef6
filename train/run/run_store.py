"""RUN on an object store: the store has what counts, and a working folder of this machine what is being worked on.

The working folder is a RUN as any other, so all that works on a folder works there: checkpoints are written and renamed
in it, figures appended, validations run. The training brings it to the store, and never waits for that but at its end:

    a checkpoint     by each rank its own files, in the background writer; listed by rank 0 when all are there
    all else         by rank 0, before each checkpoint is listed, every few minutes, and at the end

What counts is what the store has. A training that starts makes its working folder equal to it, on whichever machine, so
a kill, or the loss of the machine, costs what was done since the last checkpoint. One training at a time may write
(`train.run.lease`); which folders are whole, one object says (`train.run.store_listing`). W&B's own folder and weights
that wait for their validation stay on the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from talkinghead.files.atomic import sync, write_whole
from talkinghead.files.foreign import open_regular, parse_json
from talkinghead.files.model_cache import cache_folder
from talkinghead.files.s3_files import S3Files
from talkinghead.files.storage import Storage
from talkinghead.files.uri import holds_credentials, without_credentials
from talkinghead.provenance import hash_bytes, hash_file, hash_stream
from talkinghead.runtime.errors import MachineError
from train.run.lease import RENEW_S, Lease
from train.run.run_lock import LOCK
from train.run.store_listing import LISTING, FileEntry, Listing, StoredFolder, is_whole, place_for, place_of

log = logging.getLogger(__name__)

RUNS_VARIABLE = "TALKINGHEAD_RUNS"
"""Environment variable: folder for the working folders of runs on object stores (default: `runs` next to the user's
cache of models). It needs room for the checkpoints that a run keeps."""
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged-"
"""Beginning of the names of checkpoints that were set aside."""
HASH = ".sha256"
"""End of the name of the file with the hash of another one, in a checkpoint."""
_PUSH_EVERY_S = 300.0
_AT_A_TIME = 8
"""Number of files that are copied at a time."""
_LISTING_BYTES = 64 << 20
_CONFIG_BYTES = 1 << 20
_NOTE = "lease"
_WANDB = "wandb"


def is_store(run: str | Path) -> bool:
    """Whether RUN is given as a URI."""
    return "://" in str(run)


class RunStore:
    """RUN on an object store, and its working folder on this machine.

    Args:
        location: URI of RUN.
        renew_s: Seconds between two renewals of the lease.

    Attributes:
        location: The URI; it holds no credentials.
        folder: The working folder; it may be missing.

    Raises:
        ValueError: It is no URI that can hold a run, or it holds credentials.
    """

    def __init__(self, location: str, renew_s: float = RENEW_S) -> None:
        shown = without_credentials(location)
        if not location.startswith("s3://"):
            raise ValueError(
                f"RUN is {shown}: it can be a folder, or s3://…, since other stores have no conditional writes here;"
                " take one of these, and copy pretrained_model/ to the store afterwards"
            )
        if holds_credentials(location):
            # It reaches other processes by their command lines.
            raise ValueError(f"RUN is {shown}, with credentials: take them out and give them in the environment")
        self.location = location
        self.storage = Storage(location)
        self.files = S3Files(location)
        self.folder = _working_folder(location)
        self._renew_s = renew_s
        # Held while a training runs, on rank 0: what the store has of this folder, by this process's knowledge.
        self._lease: Lease | None = None
        self._listing, self._tag = Listing(), ""
        self._plain: dict[str, tuple[int, int]] = {}
        self._whole: dict[str, int] = {}
        self._pushing, self._guard = threading.Lock(), threading.Lock()  # of copying, and of the listing alone
        self._due, self._ended = threading.Event(), False

    def __str__(self) -> str:
        return self.location.partition("?")[0]

    def describe(self, place: Path) -> str:
        """URI of a file or folder of the working folder."""
        return self.storage.describe(place.relative_to(self.folder).as_posix())

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, path: str, limit: int) -> bytes | None:
        """Content of a small file of RUN; None where there is none."""
        found = self.files.read(path, limit)
        return None if found is None else found.data

    def listing(self) -> Listing:
        """What the store lists now.

        Raises:
            ValueError: The listing is damaged.
        """
        data = self.read(LISTING, _LISTING_BYTES)
        return Listing() if data is None else self._parsed(data)

    def fetch(self, name: str, target: Path) -> None:
        """Make a local folder equal to a listed one: files that are there already are not copied again.

        Args:
            name: Name of the folder in RUN.
            target: Local folder, which only this process fills.

        Raises:
            ValueError: There is none, or it is damaged in the store; says which file.
            UnreachableError: The store does not answer.
            OSError: The disk is full.
        """
        folder = self.listing().folders.get(name)
        if folder is None:
            raise ValueError(f"{self}/{name} is not there any more: another training has removed it")
        target.mkdir(parents=True, exist_ok=True)
        for file in [path for path, _ in _files_below(target) if path not in folder.files]:
            (target / file).unlink()
        _all_of(lambda path: self._fetch_file(folder, path, target / path), folder.files)
        sync(target)

    def _fetch_file(self, folder: StoredFolder, path: str, file: Path) -> None:
        entry = folder.files[path]
        if file.is_file() and file.stat().st_size == entry.size:
            with open_regular(file) as stream:
                if hash_stream(stream) == entry.sha256:
                    return
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.tmp-{os.urandom(4).hex()}")
        try:
            self.files.download(f"{folder.at}/{path}", scratch)
            if hash_file(scratch) != entry.sha256:
                raise ValueError(f"{self}/{folder.at}/{path} is not as it was written")
            scratch.replace(file)
        except FileNotFoundError:
            raise ValueError(f"{self}/{folder.at}/{path} is missing") from None
        finally:
            scratch.unlink(missing_ok=True)

    def pull(self, *, folders: bool = True) -> None:
        """Make the working folder equal to the store, except for checkpoints, which are fetched when they are needed.

        Call it while no training runs in the working folder. Logs that are there stay.

        Args:
            folders: Whether the whole folders are fetched, too; else only the plain files.
        """
        stored, listing = self._plain_files(), self.listing()
        with self._pushing:
            # Weights that wait here for their validation may be those of a run that had this name before.
            if _run_id(self.read(CONFIG, _CONFIG_BYTES)) != _run_id(_content(self.folder / CONFIG)):
                for waiting in self.folder.glob("validation/*/weights"):
                    shutil.rmtree(waiting)
            # Away with what the store does not have.
            for path, _ in _plain_below(self.folder):
                if path not in stored and not path.startswith("logs/"):
                    (self.folder / path).unlink()
            for name, folder in (*_whole_below(self.folder), *_checkpoints_below(self.folder)) if folders else ():
                if name not in listing.folders:
                    shutil.rmtree(folder)
            # Here with what it has.
            missing = [path for path in stored if not (path.startswith("logs/") and (self.folder / path).exists())]
            _all_of(self._pull_file, missing)
            for name in listing.folders if folders else ():
                if not name.startswith(f"{CHECKPOINTS}/"):
                    self.fetch(name, self.folder / name)
            self._plain = {path: _identity(about) for path, about in _plain_below(self.folder) if path in stored}
            # Files that another start has left in the store, and this folder lacks, are removed by the next push.
            self._plain |= {path: (-1, -1) for path in stored if path not in self._plain}
            self._whole = {name: folder.stat().st_ino for name, folder in _whole_below(self.folder)}

    def _pull_file(self, path: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if (found := self.files.read(path)) is not None:  # else it was removed meanwhile
            write_whole(file, found.data)

    def _plain_files(self) -> list[str]:
        """Paths of the plain files in the store."""
        found = []
        for name in self.storage.names():
            if name in (CHECKPOINTS, _WANDB, LISTING) or name.startswith("."):
                continue
            inner = [file.path for file in self.storage.list(name)] if self.storage.size(name) is None else [name]
            found += [path for path in inner if place_of(path) is None and not _hidden(path)]
        return found

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, patience_s: float = 0.0) -> Iterator[None]:
        """Context in which this process alone may write into RUN; the caller holds the lock of the working folder.

        Args:
            patience_s: Seconds to wait for another training that is just ending.

        Raises:
            ValueError: Another training runs in it, or the store cannot keep two trainings apart.
        """
        assert self._lease is None, "it is held already"
        self.files.check()
        # The lock of the working folder is ours: a training that was here and left its lease in the store is dead.
        note = self.folder.parent / _NOTE
        before = note.read_text() if note.is_file() else ""
        lease = Lease(S3Files(self.location, patience_s=2 * self._renew_s), LOCK, self._renew_s)
        lease.take(patience_s, dead=before)
        try:
            write_whole(note, lease.token.encode())
            self._lease = lease
            self._begin(lease)
            yield
        finally:
            self._lease = None
            lease.release()

    @contextlib.contextmanager
    def pushed(self) -> Iterator[None]:
        """Context in which a thread brings what changes to the store every few minutes, and once more after an error.

        Without an error the caller does so at the end, and learns whether it worked.
        """
        self._ended = False
        thread = threading.Thread(target=self._push_often, name="push", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._end_thread(thread)
            self._try_to_push()
            raise
        finally:
            self._end_thread(thread)

    def push_soon(self) -> None:
        """Let the thread of `pushed` bring what has changed to the store, and do not wait for it."""
        self._due.set()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending, by this process's knowledge: it holds the lease."""
        assert self._lease is not None, "only who holds the lease knows"
        with self._guard:
            return self._listing.steps()

    def has_trained(self) -> bool:
        """Whether there is a checkpoint, be it a damaged one, or weights."""
        return bool(self.listing().folders.keys() - {"task"})

    def names_of_damaged(self) -> list[str]:
        """Names of damaged checkpoints that were set aside; who asks holds the lease."""
        with self._guard:
            return sorted(name for name in self._listing.folders if name.startswith(f"{CHECKPOINTS}/{DAMAGED}"))

    def check(self) -> None:
        """Raise `LeaseLost` where another training has taken RUN over."""
        if self._lease is not None:
            self._lease.check()

    def push(self) -> None:
        """Bring everything of the working folder that has changed to the store, except checkpoints.

        Raises:
            LeaseLost: Another training has taken RUN over.
            UnreachableError: The store does not answer.
        """
        with self._pushing:
            self.check()
            # Folders before plain files: `weights/best` never names weights that are not there.
            local = _whole_below(self.folder)
            for name, folder in local:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    number = folder.stat().st_ino
                    if self._whole.get(name) != number:
                        self._put(name, folder)
                        self._whole[name] = number
            for name in self._whole.keys() - {name for name, _ in local}:
                self.remove(name)
                del self._whole[name]
            found = {path: _identity(about) for path, about in _plain_below(self.folder)}
            _all_of(self.push_file, [path for path, about in found.items() if self._plain.get(path) != about])
            _all_of(self.files.delete, self._plain.keys() - found.keys())
            self._plain = found

    def push_file(self, path: str) -> None:
        """Bring a plain file to the store; one that is not there is left out."""
        # Read, not mapped: another process may cut it.
        with contextlib.suppress(FileNotFoundError):
            self.storage.write(path, (self.folder / path).read_bytes())

    def upload(self, name: str, token: str, files: Iterable[Path]) -> None:
        """Copy files of a checkpoint to the store; it does not count before `commit`. Any rank may call it.

        Args:
            name: Name that the folder is going to have in RUN.
            token: Eight hexadecimal digits, equal on every rank.
            files: Files directly in the folder.
        """
        place = place_for(name, token)
        for file in files:
            self.files.upload(f"{place}/{file.name}", file)

    def commit(self, name: str, token: str, needed: Iterable[str]) -> None:
        """List a folder whose files all ranks have copied, each with its hash next to it.

        Args:
            name: Name of the folder in RUN.
            token: As for `upload`.
            needed: Names of files that must be there.

        Raises:
            LeaseLost: Another training has taken RUN over.
        """
        place = place_for(name, token)
        sizes = {file.path.removeprefix(f"{place}/"): file.size for file in self.storage.list(place)}
        if missing := set(needed) - sizes.keys():
            raise OSError(f"{self}/{place}/{min(missing)} did not reach the store")
        entries: dict[str, FileEntry] = {}

        def enter(path: str) -> None:
            text, hashed = self.read(f"{place}/{path}", 1000) or b"", path.removesuffix(HASH)
            entries[path] = FileEntry(size=sizes[path], sha256=hash_bytes(text))
            entries[hashed] = FileEntry(size=sizes[hashed], sha256=text.decode().strip())

        _all_of(enter, [path for path in sizes if path.endswith(HASH)])
        with self._guard:
            former = self._listing.folders.get(name)
            self._list(self._listing.with_folder(name, StoredFolder(at=place, files=entries)))
        if former is not None and former.at != place:
            self._delete(former)

    def remove(self, name: str) -> None:
        """Take a folder out of the listing, then remove its files; nothing happens where there is none."""
        with self._guard:
            folder = self._listing.folders.get(name)
            if folder is not None:
                self._list(self._listing.without(name))
        if folder is not None:
            self._delete(folder)

    def rename(self, name: str, new: str) -> None:
        """List a folder under another name; its objects keep theirs."""
        with self._guard:
            folder = self._listing.folders[name]
            self._list(self._listing.without(name).with_folder(new, folder))

    def sweep(self) -> int:
        """Remove what killed starts have left, which is in no listing; returns the number of files."""
        with self._pushing:
            listed = {folder.at for folder in self._listing.folders.values()}
            names = [name for name in self.storage.names() if not name.startswith(".")]
            roots = [name for name in names if re.match(r"(checkpoints|weights|pretrained_model|task\..*)$", name)]
            files = [file.path for root in roots for file in self.storage.list(root)]
            left = [path for path in files if (place := place_of(path)) is not None and place not in listed]
            _all_of(self.files.delete, left)
        if left:
            log.info("removed %d files of uploads that were not finished from %s", len(left), self)
        return len(left)

    def _begin(self, lease: Lease) -> None:
        """Write this training's name into the listing: a writer that had the lease before, and lives, fails on it."""
        while True:
            there = self.files.read(LISTING)
            listing = Listing() if there is None else self._parsed(there.data)
            listing = Listing(writer=lease.token, folders=listing.folders)
            data = listing.to_json()
            tag = self.files.create(LISTING, data) if there is None else self.files.replace(LISTING, data, there.tag)
            if tag is not None:
                break
            lease.check()
        self._listing, self._tag = listing, tag

    def _parsed(self, data: bytes) -> Listing:
        try:
            return Listing.from_json(data)
        except ValueError as error:
            raise ValueError(f"{self}/{LISTING} is damaged ({error!s:.200}): bring back a copy of it") from error

    def _list(self, listing: Listing) -> None:
        """Replace the listing; the caller has the guard."""
        assert self._lease is not None, "only who holds the lease writes"
        self.check()
        tag = self.files.replace(LISTING, listing.to_json(), self._tag)
        if tag is None:
            raise self._lease.lose()
        self._listing, self._tag = listing, tag

    def _put(self, name: str, folder: Path) -> None:
        """Copy a whole folder, and list it."""
        assert self._lease is not None, "only who holds the lease writes"
        self.remove(name)
        place = place_for(name, self._lease.token[:8])
        entries: dict[str, FileEntry] = {}

        def put(path: str) -> None:
            self.files.upload(f"{place}/{path}", folder / path)
            entries[path] = FileEntry(size=(folder / path).stat().st_size, sha256=hash_file(folder / path))

        _all_of(put, [path for path, _ in _files_below(folder)])
        with self._guard:
            self._list(self._listing.with_folder(name, StoredFolder(at=place, files=entries)))

    def _delete(self, folder: StoredFolder) -> None:
        _all_of(self.files.delete, [f"{folder.at}/{path}" for path in folder.files])

    def _push_often(self) -> None:
        while True:
            self._due.wait(_PUSH_EVERY_S)
            self._due.clear()
            if self._ended:
                return
            self._try_to_push()

    def _end_thread(self, thread: threading.Thread) -> None:
        self._ended = True
        self._due.set()
        thread.join()

    def _try_to_push(self) -> None:
        try:
            self.push()
        except (OSError, MachineError, ValueError) as error:
            log.warning("%s is not up to date: %s", self, error)


def _working_folder(location: str) -> Path:
    """Folder of this machine for a run: its name is that of RUN, below a folder named by the whole URI."""
    given = os.environ.get(RUNS_VARIABLE, "").strip()
    runs = Path(given).expanduser().absolute() if given else cache_folder().with_name("runs")
    place = location.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", unquote(place.partition("?")[0].rstrip("/").rpartition("/")[2])).lstrip(".")
    return runs / hashlib.sha256(place.encode()).hexdigest()[:16] / (name or "run")


def _all_of(function: Callable[[str], None], paths: Iterable[str]) -> None:
    """Call a function for each path, several at a time; raises the first error when the others have ended."""
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="run-store") as pool:
        for _ in pool.map(function, sorted(paths)):
            pass


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _run_id(config: bytes | None) -> Any:
    """Identity of the run in a config.json; None where there is none."""
    with contextlib.suppress(ValueError):
        value = None if config is None else parse_json(config, CONFIG)
        return value.get("run_id") if isinstance(value, dict) else None
    return None


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_size, about.st_mtime_ns


def _files_below(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Regular files below a folder, as paths with forward slashes; what is removed meanwhile may be missing."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent) / name
            with contextlib.suppress(FileNotFoundError):
                found.append((file.relative_to(folder).as_posix(), file.lstat()))
    return sorted(found)


def _plain_below(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Plain files of a working folder: all but those of whole folders, checkpoints, and what stays on the machine."""
    found = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name in (CHECKPOINTS, _WANDB) or entry.name.startswith(".") or is_whole(entry.name):
            continue
        if not entry.is_dir():
            with contextlib.suppress(FileNotFoundError):
                found.append((entry.name, entry.lstat()))
            continue
        inner = [(f"{entry.name}/{path}", about) for path, about in _files_below(entry)]
        found += [(path, about) for path, about in inner if not _hidden(path) and not _is_inside(path)]
    return found


def _is_inside(path: str) -> bool:
    """Whether a file belongs to a whole folder, to weights that wait for their validation, or to Ray."""
    parts = path.split("/")
    waiting = parts[0] == "validation" and parts[2:3] == ["weights"]
    return is_whole("/".join(parts[:2])) or waiting or parts[:2] == ["logs", "ray"]


def _whole_below(folder: Path) -> list[tuple[str, Path]]:
    """Whole folders of a working folder, except checkpoints."""
    places = [*folder.glob("*"), *folder.glob("weights/*")]
    named = [(place.relative_to(folder).as_posix(), place) for place in sorted(places) if place.is_dir()]
    return [(name, place) for name, place in named if is_whole(name)]


def _checkpoints_below(folder: Path) -> list[tuple[str, Path]]:
    """Checkpoints of a working folder, damaged ones, too."""
    places = [place for place in sorted(folder.glob(f"{CHECKPOINTS}/*")) if place.is_dir()]
    return [(name, place) for place in places if is_whole(name := f"{CHECKPOINTS}/{place.name}")]
