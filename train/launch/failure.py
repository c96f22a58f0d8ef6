"""Failures: the rank that fails first says in one line what ended the training; tracebacks go to RUN/logs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from talkinghead.config import from_json
from talkinghead.files.foreign import open_own, read_json
from talkinghead.runtime.errors import error_text, is_machine_error
from train.trainer.port import Interrupted

log = logging.getLogger(__name__)

Kind = Literal["user", "machine", "peer", "fault", "interrupted"]
"""Kind of a failure. user: the request cannot be met. machine: memory, disk, network. peer: another rank failed. fault:
an error in the code. interrupted: asked to end."""

# Losing another rank is a plain RuntimeError in PyTorch, told apart by its text only.
_PEER_TEXTS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo")
_FILE = "failure.json"
_FILE_BYTES = 1 << 20


class PeerError(Exception):
    """Another rank failed; that one says why."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Cause that ended a training."""

    kind: Kind
    message: str
    """Message for people, one line."""
    rank: int = 0
    """Number of the rank that failed."""


class RunFailed(Exception):
    """A training ended before its last step.

    Attributes:
        failure: Cause of the end.
        first: Whether this rank was the first to fail; only that one prints the message.
    """

    def __init__(self, failure: Failure, first: bool = True) -> None:
        super().__init__(failure, first)
        self.failure, self.first = failure, first

    def __str__(self) -> str:
        return self.failure.message


class FailureLog:
    """Files in RUN/logs: those of each rank, and `failure.json` by the rank that failed first.

    Args:
        folder: Path of RUN/logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        """Forget the failure of an earlier start."""
        (self.folder / _FILE).unlink(missing_ok=True)

    def first(self) -> Failure | None:
        """Failure of the rank that failed first since `clear`; None without one."""
        try:
            return from_json(Failure, read_json(self.folder / _FILE, _FILE_BYTES))
        except FileNotFoundError:
            return None

    def rank_file(self, rank: int) -> Path:
        """Log file of a rank."""
        return self.folder / f"rank-{rank}.log"

    @contextlib.contextmanager
    def recorded(self, rank: int) -> Iterator[None]:
        """Context that turns whatever ends it early into a `RunFailed`, and writes it down."""
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            file = self.folder / f"traceback-{rank}.txt"
            failure = failure_of(error, rank, file)
            first = True
            # A full disk must not hide the failure: then it is raised without being written.
            try:
                with os.fdopen(open_own(file), "w", encoding="utf-8") as stream:
                    stream.truncate(0)
                    traceback.print_exception(error, file=stream)
                first = self._claim(failure)
            except OSError as full:
                log.warning("cannot write to %s: %s", self.folder, full.strerror)
            raise RunFailed(failure, first) from error

    def _claim(self, failure: Failure) -> bool:
        """Write a failure down unless there is one; returns whether it was the first."""
        temporary = self.folder / f".{_FILE}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            temporary.write_text(json.dumps(dataclasses.asdict(failure)))
            # A link appears whole or not at all, and only for the first rank, also between machines on a shared disk.
            os.link(temporary, self.folder / _FILE)
        except FileExistsError:
            return False
        else:
            return True
        finally:
            temporary.unlink(missing_ok=True)


def failure_of(error: BaseException, rank: int, file: Path) -> Failure:
    """Failure that an exception means.

    Args:
        error: Exception that ended a rank.
        rank: Number of the rank.
        file: File with the traceback.
    """
    # From the particular to the general: most of these are a RuntimeError, OSError or ValueError, too.
    text = " ".join(str(error).split())
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return Failure(kind="interrupted", message=text or "interrupted", rank=rank)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        first = text.split(". ")[0]
        return Failure(kind="machine", message=f"out of memory: take a smaller --train.microbatch ({first})", rank=rank)
    if isinstance(error, (PeerError, dist.DistError)) or _says_peer(error, text):
        return Failure(kind="peer", message=f"rank {rank} lost the other ranks ({text[:200]}), see {file}", rank=rank)
    if is_machine_error(error):
        return Failure(kind="machine", message=_one_line(error), rank=rank)
    if isinstance(error, (OSError, ValueError)):
        return Failure(kind="user", message=_one_line(error), rank=rank)
    # Anything else is a mistake of ours: the message names the traceback.
    cause = f"{type(error).__name__}: {text[:300]}"
    return Failure(kind="fault", message=f"rank {rank} failed: {cause} (the traceback is in {file})", rank=rank)


def _one_line(error: BaseException) -> str:
    return " ".join(error_text(error).split())


def _says_peer(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and any(part in text for part in _PEER_TEXTS)
