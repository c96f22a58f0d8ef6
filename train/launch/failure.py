"""Failures: the rank that fails first says in one line what ended the training; tracebacks go to RUN/logs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
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
from train.config import TrainConfig
from train.trainer.port import Interrupted

log = logging.getLogger(__name__)

Kind = Literal["user", "machine", "peer", "fault", "interrupted"]
"""Kind of a failure. user: the request cannot be met. machine: memory, disk, network. peer: another rank failed. fault:
an error in the code. interrupted: asked to end."""

# Losing another rank is a plain RuntimeError in PyTorch, told apart by its text only.
_PEER_TEXTS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo")
# Nor has lack of memory a class of its own everywhere: what PyTorch says on a CPU, and on a GPU outside its allocator.
_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_ALLOCATOR = re.compile(r"DefaultCPUAllocator: [^.\[]*")
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
    def recorded(self, rank: int, config: TrainConfig | None = None) -> Iterator[None]:
        """Context that turns whatever ends it early into a `RunFailed`, and writes it down.

        Args:
            rank: Number of this rank.
            config: Settings in force, which the message names where memory does not suffice.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            file = self.folder / f"traceback-{rank}.txt"
            failure = failure_of(error, rank, file, config)
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


def failure_of(error: BaseException, rank: int, file: Path, config: TrainConfig | None = None) -> Failure:
    """Failure that an exception means.

    Args:
        error: Exception that ended a rank.
        rank: Number of the rank.
        file: File with the traceback.
        config: Settings in force, as far as they are known.
    """
    # From the particular to the general: most of these are a RuntimeError, OSError or ValueError, too.
    text = " ".join(str(error).split())
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return Failure(kind="interrupted", message=text or "interrupted", rank=rank)
    if is_out_of_memory(error):
        return Failure(kind="machine", message=out_of_memory(text, config), rank=rank)
    if isinstance(error, (PeerError, dist.DistError)) or _says_peer(error, text):
        return Failure(kind="peer", message=f"rank {rank} lost the other ranks ({text[:200]}), see {file}", rank=rank)
    if is_machine_error(error):
        return Failure(kind="machine", message=_one_line(error), rank=rank)
    if isinstance(error, (OSError, ValueError)):
        return Failure(kind="user", message=_one_line(error), rank=rank)
    # Anything else is a mistake of ours: the message names the traceback.
    cause = f"{type(error).__name__}: {text[:300]}"
    return Failure(kind="fault", message=f"rank {rank} failed: {cause} (the traceback is in {file})", rank=rank)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of a GPU or of this process."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY_TEXTS)


def out_of_memory(text: str, config: TrainConfig | None) -> str:
    """Message of a rank whose memory did not suffice, with the microbatch in force and the setting that helps.

    Args:
        text: What the library says.
        config: Settings in force; None: they are not known.
    """
    force, advice = "", "take a smaller --train.microbatch"
    if config is not None:
        microbatches, advice = microbatch_in_force(config)
        force = f" with {microbatches}"
    # The first sentence: PyTorch adds advice about its allocator, or where in its source it failed.
    found = _ALLOCATOR.search(text)
    first = (found[0] if found else text.split(". ")[0])[:200]
    return f"out of memory{force}: {advice}" + (f" ({first})" if first else "")


def microbatch_in_force(config: TrainConfig) -> tuple[str, str]:
    """The microbatches of a training in words, and what to do where memory does not suffice for one."""
    if config.microbatch_seconds is not None:
        return f"microbatches of {config.microbatch_seconds:g} s", "take a smaller --train.microbatch-seconds"
    if config.microbatch == 1:  # there is no smaller one
        return "microbatches of 1", "set --train.parallel.activation-checkpointing, or train on a larger device"
    return f"microbatches of {config.microbatch}", "take a smaller --train.microbatch"


def _one_line(error: BaseException) -> str:
    return " ".join(error_text(error).split())


def _says_peer(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and any(part in text for part in _PEER_TEXTS)
