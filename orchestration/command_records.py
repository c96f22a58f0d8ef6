"""Records of commands: who ran what on DATA, when, with which versions, and how it ended.

One file for each command that runs a job, `commands/<time>-<id>.json`: written when it has DATA to itself, replaced
when it ends. One that was killed has a record without an end. Commands that take people out of DATA are not recorded
here: their command lines name them (`removed/` has what may be kept).
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import platform
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from orchestration.jobs.finish import TOOLS
from orchestration.units.records import RECORD_BYTES, PassRecord, checked
from talkinghead import dataroot
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.files.uri import hide_known_secrets
from talkinghead.provenance import library_versions, pretty_json
from talkinghead.runtime.command_line import GOES_ON, ending_of
from talkinghead.runtime.errors import one_line
from talkinghead.runtime.ray_cluster import submitted_name

log = logging.getLogger(__name__)

_LONGEST_TEXT = 2000


@dataclass(frozen=True, kw_only=True)
class JobCounts:
    """Counts of one job within a command."""

    units: int
    """Units committed or quarantined."""
    frames: int
    """Frames that they put out."""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class CommandRecord:
    """What one command on DATA was, and how it ended."""

    # The fields are those of JSON files in DATA: names stay, and a new field needs a default.

    command: str
    """Its command line, as a shell takes it."""
    started: str
    """UTC, `2026-01-31T12:00:00Z`, by the clock of its machine."""
    user: str
    host: str
    pid: int
    versions: dict[str, str]
    """Distribution → version, and that of Python."""
    ray_job: str | None = None
    """Name of the submitted job that it is."""
    ended: str | None = None
    """UTC; None while it runs, and for ever where it was killed."""
    status: int | None = None
    """Exit status of its jobs; 0 also where so many inputs are in quarantine that the command itself ended with 1."""
    error: str = ""
    """Error line, where it failed."""
    jobs: dict[str, JobCounts] = field(default_factory=dict)
    """Job → what was done of it."""

    @classmethod
    def from_json(cls, data: bytes, name: str = "the record") -> CommandRecord:
        """Parse a record file. Raises `ValueError`, which names the file by `name`, if it is none."""
        return checked(cls, parse_json(data, name), name)


@contextlib.contextmanager
def recorded(storage: Storage) -> Iterator[None]:
    """Keep a record of this process's command while the block runs, and of how the block ends.

    A record that cannot be written at the end is no failure of the command.

    Args:
        storage: DATA, which this process may write.

    Raises:
        OSError: The record cannot be written at the beginning: nothing else could be either.
    """
    began = time.time_ns()
    path = dataroot.command(began, secrets.token_hex(4))
    record = CommandRecord(
        command=_shortened(shlex.join([*_program(), *sys.argv[1:]])),
        started=_utc(),
        user=_user(),
        host=socket.gethostname(),
        pid=os.getpid(),
        versions=_versions(),
        ray_job=submitted_name(),
    )
    storage.check_links(dataroot.COMMANDS_FOLDER)
    storage.write(path, pretty_json(asdict(record)))
    status, error = 0, ""
    try:
        yield
    except BaseException as raised:
        ending = ending_of(raised, GOES_ON) if isinstance(raised, (Exception, KeyboardInterrupt)) else None
        status = ending.status if ending else 1
        text = ending.text.splitlines()[-1] if ending and ending.text else f"{type(raised).__name__}: {raised}"
        error = _shortened(one_line(text.removeprefix("error: ")))
        raise
    finally:
        try:
            done = replace(record, ended=_utc(), status=status, error=error, jobs=_done_since(storage, began))
            storage.write(path, pretty_json(asdict(done)))
        except (OSError, ValueError) as problem:
            log.warning("the end of this command is not recorded: %s", one_line(str(problem)))


def command_records(storage: Storage, newest: int) -> list[CommandRecord]:
    """The newest records of commands that can be read, the last first."""
    found = []
    for file in reversed(storage.list(dataroot.COMMANDS_FOLDER, ".json")[-newest:]):
        try:
            data = storage.read(file.path, RECORD_BYTES, "record")
            found.append(CommandRecord.from_json(data, storage.describe(file.path)))
        except ValueError as error:
            log.warning("%s", one_line(str(error)))
    return found


def _done_since(storage: Storage, began_ns: int) -> dict[str, JobCounts]:
    """Job → sums over the passes that ended since a time; nobody else has written to DATA meanwhile."""
    sums: dict[str, JobCounts] = {}
    for file in storage.list(dataroot.RUNS_FOLDER, ".json"):
        stamp = Path(file.path).name.partition("-")[0]
        if not stamp.isdecimal() or int(stamp) < began_ns:
            continue
        done = PassRecord.from_json(storage.read(file.path, RECORD_BYTES, "record"), storage.describe(file.path))
        before = sums.get(done.job, JobCounts(units=0, frames=0, wall_seconds=0.0))
        sums[done.job] = JobCounts(
            units=before.units + done.units,
            frames=before.frames + done.frames,
            wall_seconds=round(before.wall_seconds + done.wall_seconds, 3),
        )
    return sums


def _program() -> list[str]:
    """How this process was started: `python -m <package>`, or the name of its program."""
    program = Path(sys.argv[0])
    return ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in TOOLS:
        with contextlib.suppress(PackageNotFoundError):  # talkinghead, where it is not installed but sent by Ray
            versions |= library_versions(name)
    return versions


def _user() -> str:
    """Name of the user; their number where the machine has no name for it, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


def _shortened(text: str) -> str:
    text = hide_known_secrets(text)
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _utc() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
