"""What ended a run: of all ranks the first that failed says it in one line; tracebacks go to RUN/logs."""

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

from talkinghead.runtime.errors import error_text, is_machine_error
from train.trainer.port import Interrupted

log = logging.getLogger(__name__)

Kind = Literal["user", "machine", "peer", "fault", "interrupted"]

_PEER_TEXTS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo")
_FILE = "failure.json"


class PeerError(Exception):
    """Another rank failed, and says why."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ended a run."""

    kind: Kind
    message: str
    """One line."""
    rank: int = 0


class RunFailed(Exception):
    """A run has ended before its last step.

    Attributes:
        failure: Why.
        first: Whether this rank was the first to fail; it, and no other, tells people.
    """

    def __init__(self, failure: Failure, first: bool = True) -> None:
        super().__init__(failure, first)
        self.failure, self.first = failure, first

    def __str__(self) -> str:
        return self.failure.message


class FailureLog:
    """RUN/logs: files of each rank, and `failure.json` of the rank that failed first.

    Args:
        folder: RUN/logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        """Forget the failure of an earlier start."""
        (self.folder / _FILE).unlink(missing_ok=True)

    def first(self) -> Failure | None:
        """What the first failing rank of this start said, if one could."""
        try:
            return Failure(**json.loads((self.folder / _FILE).read_bytes()))
        except FileNotFoundError:
            return None

    def rank_file(self, rank: int) -> Path:
        """Log file of a rank."""
        return self.folder / f"rank-{rank}.log"

    @contextlib.contextmanager
    def recorded(self, rank: int) -> Iterator[None]:
        """Turn whatever ends the block early into a `RunFailed`, and write it down."""
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            file = self.folder / f"traceback-{rank}.txt"
            failure = failure_of(error, rank, file)
            first = True
            try:
                with file.open("w", encoding="utf-8") as stream:
                    traceback.print_exception(error, file=stream)
                first = self._claim(failure)
            except OSError as full:
                log.warning("cannot write to %s: %s", self.folder, full.strerror)
            raise RunFailed(failure, first) from error

    def _claim(self, failure: Failure) -> bool:
        """Write a failure down unless there is one; a link is made whole or not, and never twice."""
        temporary = self.folder / f".{_FILE}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            temporary.write_text(json.dumps(dataclasses.asdict(failure)))
            os.link(temporary, self.folder / _FILE)
        except FileExistsError:
            return False
        else:
            return True
        finally:
            temporary.unlink(missing_ok=True)


def failure_of(error: BaseException, rank: int, file: Path) -> Failure:
    """What an exception means for people.

    Args:
        error: What was raised.
        rank: Where.
        file: Where the traceback stands.
    """
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
    said = f"{type(error).__name__}: {text[:300]}"
    return Failure(kind="fault", message=f"rank {rank} failed: {said} (the traceback is in {file})", rank=rank)


def _one_line(error: BaseException) -> str:
    return " ".join(error_text(error).split())


def _says_peer(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and any(part in text for part in _PEER_TEXTS)
