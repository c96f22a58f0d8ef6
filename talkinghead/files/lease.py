"""The lease of a data set: the right of one command, on whichever machine, to write there.

A lease has an epoch, a number that only grows. Who takes it creates `lease/<epoch>.json`, which a folder and an object
store give to one of any number of writers; the highest epoch is the one that counts. The holder counts upwards in its
file. Who wants the lease and finds a holder watches: a count that moves is a command that lives, and one that stands
still for `ttl_s`, by the watcher's own clock, is one that died, or was stopped or cut off, and is taken over by the
next epoch. No two machines' clocks are compared. Where holder and watcher share a machine, the kernel knows at once
whether the holder lives.

A holder that was taken over may not know it. So a `Storage` that writes under an epoch asks before every write whether
a higher one has begun (`refuse_stale`), also in workers on other machines, and then writes no more. Between that
question and the write a moment is left; what must not change even then is created, never replaced.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.files.foreign import parse_json
from talkinghead.files.lock import LockedError
from talkinghead.provenance import pretty_json
from talkinghead.runtime.errors import UnreachableError, one_line

log = logging.getLogger(__name__)

LEASE_TTL = "TALKINGHEAD_LEASE_TTL_S"
"""Environment variable: seconds for which a command may give no sign of life before another takes DATA over."""
_TTL_S = 60.0
_BEATS = 12
"""Signs of life in that time."""
_LONGEST_S = 86_400.0
_LOOK_S = 0.5
_FILE_BYTES = 10_000
_STANDING = "TtD"
"""States of a process (proc_pid_stat(5)) in which it may stand still for ever: stopped, traced, waiting for a disk."""


class LeaseLostError(UnreachableError):
    """Another command has taken DATA over: this one, and its workers, may write there no more."""


class _File(Protocol):
    @property
    def path(self) -> str: ...


class Place(Protocol):
    """Data set that a lease is of; `Storage` is one."""

    uri: str

    def list(self, folder: str, suffix: str = "") -> Sequence[_File]:
        """Files of a folder."""
        ...

    def read(self, path: str, limit: int | None = None, what: str = "file") -> bytes:
        """Content of a file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file where there is none; returns whether it did."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        ...

    def describe(self, path: str) -> str:
        """Full name of a file."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Process:
    """A process, as the kernel of its machine tells it from all others, earlier ones too."""

    boot: str
    """Id of the machine's start; empty where it is not known."""
    space: str
    """Name space of its number: containers count by themselves."""
    pid: int
    began: str
    """Clock ticks from the machine's start to its own."""

    @classmethod
    def this(cls) -> _Process:
        """The process that asks."""
        pid = os.getpid()
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return cls(boot=boot, space=str(Path("/proc/self/ns/pid").readlink()), pid=pid, began=_stat(pid)[1])
        except OSError:
            return cls(boot="", space="", pid=pid, began="")

    def state(self) -> str | None:
        """What the kernel says of it: a letter, empty when it has ended; None: it is another machine's."""
        here = _Process.this()
        if not here.boot or (self.boot, self.space) != (here.boot, here.space):
            return None
        try:
            state, began = _stat(self.pid)
        except OSError:
            return ""
        return state if began == self.began and state not in "ZX" else ""


def _stat(pid: int) -> tuple[str, str]:
    """State of a process, and when it began."""
    # The name of the program comes first, in brackets, and may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the file of an epoch says."""

    host: str
    user: str
    command: str
    """Program and subcommand, without arguments: they may name persons."""
    since: str
    """UTC, by the holder's clock: for people, and for nothing else."""
    token: str
    """Name of this holding, drawn for each: so no two write the same bytes, and who created a file knows it again."""
    process: _Process
    beat: int = 0
    """Signs of life so far."""
    ttl_s: float = _TTL_S
    ended: bool = False
    """Whether the lease was given back."""

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s <= _LONGEST_S:
            raise ValueError(f"its ttl_s is {self.ttl_s}")

    @property
    def holder(self) -> str:
        """Words for people: which process, where, whose, doing what, since when."""
        process = f"process {self.process.pid} on {self.host} by {self.user}"
        return one_line(f"{process}, {self.command}, since {self.since}"[:500])


def refuse_stale(place: Place, epoch: int) -> None:
    """Refuse to write under an epoch that is over.

    Args:
        place: The data set.
        epoch: Epoch of the lease under which the caller writes.

    Raises:
        LeaseLostError: A higher epoch has begun, or the file of this one was removed.
        UnreachableError: The store does not answer.
    """
    highest = _highest(place)
    # A listing may miss a file that is just being replaced; a look at the file itself does not.
    if highest == epoch or (highest < epoch and place.exists(dataroot.lease(epoch))):
        return
    why = "its lease was removed"
    if highest > epoch:
        found = _read(place, highest)
        why = f"another command has taken over ({found.holder})" if found else "another command has taken over"
    raise LeaseLostError(f"this command may write to {place.uri} no more: {why}")


def newest(place: Place) -> Content | None:
    """What the file of the highest epoch says; None where there is none, or none that can be read."""
    try:
        return _read(place, epoch) if (epoch := _highest(place)) else None
    except ValueError:
        return None


class Lease:
    """Lease of one data set, held by at most one command.

    Args:
        place: The data set. It must itself write under no epoch.
        ttl_s: Seconds without a sign of life after which another command may take over; None: as the environment says.

    Attributes:
        epoch: Epoch that is held; 0 before `take`.

    Raises:
        ValueError: The environment names no such number.
    """

    def __init__(self, place: Place, ttl_s: float | None = None) -> None:
        self._place = place
        self._ttl_s = _ttl() if ttl_s is None else ttl_s
        self.epoch = 0
        self._content: Content | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Take the lease, and give signs of life in a thread until `release`.

        Raises:
            LockedError: Another command holds it, and lives.
            ValueError: A file that is no lease lies in its place, or the store has no conditional writes.
            OSError: It cannot be written.
        """
        mine = _of_this_process(self._ttl_s)
        while True:
            before = _highest(self._place)
            if before and not self._is_free(before):
                continue  # it has changed hands meanwhile
            epoch = before + 1
            try:
                if not self._place.create(dataroot.lease(epoch), pretty_json(asdict(mine))):
                    continue
            except FileNotFoundError:  # whoever holds it has just removed all temporary files
                continue
            # Whoever looked before two others came and went has created an epoch that is over already.
            if _highest(self._place) <= epoch:
                break
            self._place.delete(dataroot.lease(epoch))
        for file in self._place.list(dataroot.LEASE_FOLDER):
            if 0 < (dataroot.epoch_of_lease(file.path) or 0) < epoch:
                self._place.delete(file.path)
        self.epoch, self._content = epoch, mine
        self._ended.clear()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLostError` where another command has taken over."""
        refuse_stale(self._place, self.epoch)

    def release(self) -> None:
        """Give the lease back, if it is still held; a place that cannot be written is only logged."""
        if self._thread is None or self._content is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        try:
            self._say(replace(self._content, ended=True))
        except LeaseLostError as error:
            log.warning("%s", error)
        except OSError as error:
            log.warning("the lease is not given back, and runs out by itself: %s", error)

    def _is_free(self, epoch: int) -> bool:
        """Whether the epoch is over, after watching its holder where need be; False: another one has begun.

        Raises:
            LockedError: Its holder lives.
        """
        first = found = _read(self._place, epoch)
        looked_at, told = time.monotonic(), False
        while found is not None and first is not None:
            state = found.process.state()
            if found.ended or state == "":
                return True
            if (state is not None and state not in _STANDING) or found.beat != first.beat:
                raise LockedError(
                    f"another job is writing to {self._place.uri} ({found.holder}); wait for it or stop it: where its"
                    f" machine is lost, this command takes over {found.ttl_s:g} s after its last sign of life",
                    found.holder,
                )
            if time.monotonic() - looked_at >= found.ttl_s:
                log.warning("%s is taken over: no sign of life of %s", self._place.uri, found.holder)
                return True
            if not told:
                told = True
                log.warning(
                    "%s is held by %s: looking for up to %g s whether that lives",
                    self._place.uri, found.holder, found.ttl_s,
                )  # fmt: skip
            time.sleep(min(_LOOK_S, found.ttl_s / (4 * _BEATS)))
            if _highest(self._place) != epoch:
                return False
            found = _read(self._place, epoch)
        return False

    def _live(self) -> None:
        """Give signs of life until the end, or until there is a higher epoch."""
        assert self._content is not None
        while not self._ended.wait(self._ttl_s / _BEATS):
            try:
                self._say(replace(self._content, beat=self._content.beat + 1))
            except LeaseLostError as error:
                log.error("%s", error)
                return
            except OSError as error:
                # The next one tells whether anybody has used the time.
                log.warning("no sign of life could be given: %s", error)

    def _say(self, content: Content) -> None:
        self.check()
        self._place.write(dataroot.lease(self.epoch), pretty_json(asdict(content)))
        self._content = content


def _highest(place: Place) -> int:
    """Highest epoch that has begun; 0: none."""
    return max((dataroot.epoch_of_lease(file.path) or 0 for file in place.list(dataroot.LEASE_FOLDER)), default=0)


def _read(place: Place, epoch: int) -> Content | None:
    """What the file of an epoch says; None where it is gone.

    Raises:
        ValueError: It is no lease.
    """
    path = dataroot.lease(epoch)
    try:
        data = place.read(path, _FILE_BYTES, "lease")
    except FileNotFoundError:
        return None
    try:
        return from_json(Content, parse_json(data, "it"))
    except ValueError as error:
        raise ValueError(f"{place.describe(path)} is no lease of ours: {error}; remove it while no job runs") from error


def _of_this_process(ttl_s: float) -> Content:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in a container
        user = str(os.getuid())
    return Content(
        host=socket.gethostname(),
        user=user,
        command=_command(),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        token=uuid.uuid4().hex,
        process=_Process.this(),
        ttl_s=ttl_s,
    )


def _command() -> str:
    """Program and subcommand of this process, such as `orchestration shards`."""
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    name = program.parent.name if program.name == "__main__.py" else program.stem
    subcommand = sys.argv[1] if sys.argv[1:] and sys.argv[1].isidentifier() else ""
    return f"{name} {subcommand}".strip()


def _ttl() -> float:
    given = os.environ.get(LEASE_TTL, "").strip()
    try:
        seconds = float(given) if given else _TTL_S
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"{LEASE_TTL} is {given!r}: it must be a number of seconds, at most {_LONGEST_S:,.0f}")
    return seconds
