"""Port of a rank to the outside: its place among the ranks, its launcher, and requests to end.

Thus the training loop knows no launcher. A training may be ended early in two ways: the launcher announces it
(`Port.preempting`), or a signal comes (`StopRequest`).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

log = logging.getLogger(__name__)

MEETING_VARIABLE = "TALKINGHEAD_TRAIN_MEETING"
"""Environment variable with the folder in which the ranks meet, where our own launcher has started them here: it passes
signals on to them, and kills them when they are to end at once."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""SIGTERM: a scheduler takes the machine back. SIGINT: Ctrl-C."""


class Port(Protocol):
    """Place of a rank among the ranks, and its connection to the launcher."""

    @property
    def rank(self) -> int:
        """Number of this process, 0 … world - 1."""
        ...

    @property
    def world(self) -> int:
        """Number of ranks."""
        ...

    @property
    def local_rank(self) -> int:
        """Number of this process among the ranks of its machine, from 0."""
        ...

    @property
    def local_world(self) -> int:
        """Number of ranks on this machine."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the launcher how far the training is. Every rank calls it at the same steps."""
        ...

    def preempting(self) -> bool:
        """Whether this training will soon be ended, so that a checkpoint is due now; True once for each notice.

        Every rank calls it at the same steps: they may wait for each other in it. It costs milliseconds: ask about once
        a second.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LocalPort:
    """Port of a single process or of a rank of this machine or a torchrun. Nobody takes reports, and only signals end
    it early."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> LocalPort:
        """Port with the place that the environment variables give, by the names that torchrun has for them."""
        number = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        return cls(
            rank=number["RANK"],
            world=number["WORLD_SIZE"],
            local_rank=number["LOCAL_RANK"],
            local_world=number["LOCAL_WORLD_SIZE"],
        )

    def report(self, metrics: Mapping[str, float]) -> None:
        """Do nothing: nobody takes reports."""

    def preempting(self) -> bool:
        """Return False: nothing is announced."""
        return False


class RayPort:
    """Port of a worker of Ray Train.

    Args:
        session: Module `ray.train`; only the launcher imports it.
        stop_file: File that the launcher makes when it will end the training at the next checkpoint.
    """

    def __init__(self, session: Any, stop_file: Path) -> None:
        context = session.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.local_rank: int = context.get_local_rank()
        self.local_world: int = context.get_local_world_size()
        self._session = session
        self._stop_file = stop_file
        self._known: Any = None

    def report(self, metrics: Mapping[str, float]) -> None:
        """Show the figures in Ray's state; Ray gets no checkpoints."""
        # ASYNC does not wait for the controller, which polls only every 2 s.
        mode = self._session.CheckpointUploadMode.ASYNC
        self._session.report(dict(metrics), checkpoint_upload_mode=mode)

    def preempting(self) -> bool:
        """Whether Ray drains a node of this run, or the launcher was asked to stop."""
        # Remember the last notice, so that each one makes one checkpoint.
        notice = (self._session.get_preemption_info(), self._stop_file.exists())
        new = notice != self._known and notice != (None, False)
        self._known = notice
        return new


# --- signals ----------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """A training was asked to end, and did so after a whole checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted at step {step}; the same command continues from there")
        self.step = step


@contextmanager
def unsignalled() -> Iterator[None]:
    """Context whose child processes never get SIGTERM or SIGINT; this process gets them afterwards.

    Launchers, schedulers and Ctrl-C signal whole process groups. Reading processes that died of it would take the
    training with them before its checkpoint is written.
    """
    # Child processes inherit the mask and keep it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """Context in which a first signal only sets `requested`; a second one has its ordinary effect.

    In a rank that our launcher has started here, a second one has none: a scheduler signals every process, and the
    launcher passes its own signal on, so the same request comes twice. A person's second signal reaches the launcher,
    which then kills the ranks.

    Outside the main thread, where Python allows no signal handlers, it handles none: there the launcher asks.

    Args:
        silent: Whether to log nothing, where another process says what follows.

    Attributes:
        requested: Whether a signal came.
        number: Number of the first signal, 0 before that.
    """

    def __init__(self, silent: bool = False) -> None:
        self.requested, self.number = False, 0
        self._silent, self._patient = silent, MEETING_VARIABLE in os.environ
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested, self.number = True, number
        # With the handlers restored, a second signal ends the process.
        if not self._patient:
            self._restore()
        if not self._silent:
            log.warning("%s: writing a checkpoint, then stopping", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
