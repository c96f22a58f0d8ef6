"""Failures: the rank that fails first says in one line what ended the training; tracebacks go to RUN/logs.

A failure that may pass (a lost machine, memory, a store that does not answer) is worth another start from the newest
checkpoint, which launchers do by themselves; the others are final.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from talkinghead.config import from_json
from talkinghead.files.foreign import open_own, read_json
from talkinghead.runtime.command_line import GOES_ON
from talkinghead.runtime.errors import error_text, is_full_disk, is_machine_error
from train.config import TrainConfig
from train.microbatch import microbatch_text
from train.trainer.port import Interrupted, Preempted

log = logging.getLogger(__name__)

Kind = Literal["user", "disk", "memory", "lost", "machine", "peer", "fault", "interrupted", "preempted"]
"""Kind of a failure. user: the request cannot be met. disk: it is full. memory: it does not suffice. lost: a rank was
killed or stopped, or its machine or network is gone. machine: mounts, stores, the network. peer: another rank failed,
which says why or could not. fault: an error in the code. interrupted: asked to end. preempted: asked to make room, to
be started again by itself."""
_FINAL: tuple[Kind, ...] = ("user", "disk", "fault", "interrupted", "preempted")
"""Kinds that another start does not mend, or that nobody wants mended."""
REQUEUE = 75
"""Exit status that asks a scheduler to start the same command again (EX_TEMPFAIL of sysexits.h)."""

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
_TAKEN = ("EADDRINUSE", "Address already in use")
_FILE, _PEER_FILE = "failure.json", "failure-peer.json"
_FILE_BYTES = 1 << 20


class PeerError(Exception):
    """Another rank failed; that one says why."""


class StrangerError(PeerError):
    """Something came over the network that no rank of this training has sent."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Cause that ended a training."""

    kind: Kind
    message: str
    """Message for people, one line."""
    rank: int = 0
    """Number of the rank that failed."""
    at: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    @property
    def final(self) -> bool:
        """Whether another start from the newest checkpoint would not help, or is not wanted."""
        return self.kind in _FINAL

    @property
    def status(self) -> int:
        """Exit status of the command. 2: the request cannot be met as it is. 75: a scheduler is to start it again.
        1: it ended on the way, and the same command may go on."""
        return {"user": 2, "preempted": REQUEUE}.get(self.kind, 1)

    @property
    def line(self) -> str:
        """Last line of the command on stderr."""
        if self.kind in ("interrupted", "preempted"):
            return self.message
        return f"error: {self.message}" + ("" if self.kind == "user" else f"; {GOES_ON.mended}")


class Repetition:
    """Judgement whether a failure is worth another start.

    Memory that does not suffice may do so the next time: another process took it, or a rare sample is large. Where it
    fails twice without a newer checkpoint in between, the microbatch is too large, and the failure final.
    """

    def __init__(self) -> None:
        self._before: tuple[Failure, int | None] | None = None

    def final(self, failure: Failure, step: int | None) -> bool:
        """Whether to give up.

        Args:
            failure: Failure of the last start; may be asked about again.
            step: Step of the newest checkpoint; None: there is none.
        """
        if failure.kind != "memory":
            return failure.final
        before, self._before = self._before, (failure, step)
        if before is not None and before[0] == failure:
            self._before = before  # the same one, asked again
            return False
        return before is not None and before[1] == step


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
        for name in (_FILE, _PEER_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def first(self) -> Failure | None:
        """Failure of the rank that failed first since `clear`; None without one.

        A rank that merely lost another one is only named where no other rank says why.
        """
        for name in (_FILE, _PEER_FILE):
            with contextlib.suppress(FileNotFoundError):
                return from_json(Failure, read_json(self.folder / name, _FILE_BYTES))
        return None

    def rank_file(self, rank: int) -> Path:
        """Log file of a rank."""
        return self.folder / f"rank-{rank}.log"

    @contextlib.contextmanager
    def recorded(
        self, rank: int, config: TrainConfig | None = None, tell: Callable[[Failure], None] | None = None
    ) -> Iterator[None]:
        """Context that turns whatever ends it early into a `RunFailed`, and writes it down.

        Args:
            rank: Number of this rank.
            config: Settings in force, which the message names where memory does not suffice.
            tell: Function that tells the other ranks. They know already of an interruption at a step on which all have
                agreed.
        """
        try:
            yield
        except RunFailed:  # written down by an inner context
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            file = self.folder / f"traceback-{rank}.txt"
            failure = failure_of(error, rank, file, config)
            first = True
            # A full disk must not hide the failure: then it is raised without being written.
            try:
                with os.fdopen(open_own(file), "w", encoding="utf-8") as stream:
                    stream.truncate(0)
                    traceback.print_exception(error, file=stream)
                first = self.claim(failure)
            except OSError as full:
                log.warning("cannot write to %s: %s", self.folder, full.strerror)
            if tell is not None and not isinstance(error, Interrupted):
                tell(failure)
            raise RunFailed(failure, first) from error

    def claim(self, failure: Failure) -> bool:
        """Write a failure down unless there is one; returns whether it was the first.

        A cause has a file of its own, so that a rank that lost another one may be faster and still covers no cause.

        Raises:
            OSError: It cannot be written.
        """
        if failure.kind == "peer" and self.first() is not None:
            return False
        temporary = self.folder / f".{_FILE}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            temporary.write_text(json.dumps(dataclasses.asdict(failure)))
            # A link appears whole or not at all, and only for the first rank, also between machines on a shared disk.
            os.link(temporary, self.folder / (_PEER_FILE if failure.kind == "peer" else _FILE))
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
    if isinstance(error, Preempted) or (isinstance(error, Interrupted) and error.requeue):
        return Failure(kind="preempted", message=text, rank=rank)
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return Failure(kind="interrupted", message=text or "interrupted", rank=rank)
    if is_out_of_memory(error):
        return Failure(kind="memory", message=out_of_memory(text, config), rank=rank)
    if isinstance(error, StrangerError):  # nothing to be tried again: who talks here may falsify the training
        return Failure(kind="fault", message=f"rank {rank}: {text}", rank=rank)
    if isinstance(error, dist.DistError) and any(part in text for part in _TAKEN):
        message = f"rank {rank} cannot open the port at which the ranks meet ({text[:200]}): set MASTER_PORT to another"
        return Failure(kind="machine", message=message, rank=rank)
    if isinstance(error, (PeerError, dist.DistError)) or _says_peer(error, text):
        return Failure(kind="peer", message=f"rank {rank} lost the other ranks ({text[:200]}), see {file}", rank=rank)
    if is_full_disk(error):
        return Failure(kind="disk", message=_one_line(error), rank=rank)
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
    advice = "take a smaller --train.microbatch"
    if config.microbatch_seconds is not None:
        advice = "take a smaller --train.microbatch-seconds"
    elif config.microbatch == 1:  # there is no smaller one
        advice = "set --train.parallel.activation-checkpointing, or train on a larger device"
    return microbatch_text(config), advice


def _one_line(error: BaseException) -> str:
    return " ".join(error_text(error).split())


def _says_peer(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and any(part in text for part in _PEER_TEXTS)
