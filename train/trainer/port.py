"""Port of a rank to the outside: its place among the ranks, its launcher, and requests to end.

Thus the training loop knows no launcher. A training may be ended early in three ways: the launcher announces it
(`Port.preempting`), a signal comes (`StopRequest`), or its hours are over (`Deadline`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

log = logging.getLogger(__name__)

MEETING_VARIABLE = "TALKINGHEAD_TRAIN_MEETING"
"""Environment variable with the folder in which the ranks meet, where our own launcher has started them here: it passes
signals on to them, and kills them when they are to end at once."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGTERM: a scheduler takes the machine back. SIGINT: Ctrl-C. SIGUSR1: a scheduler will take the machine back soon
(SLURM's --signal), and starts the job again later."""
_ONCE_S = 5.0
"""Seconds within which SIGTERM counts once: schedulers signal the process and then its group, or every second."""


class Progress:
    """Progress of a rank through its steps: what it does now, since when, and the number of such notes until then.

    The main thread notes; the thread that watches over the ranks (`train.launch.peers`) reads. All ranks note the same
    at the same places, so the one with the fewest notes is the one that the others wait for.
    """

    def __init__(self) -> None:
        self._now: tuple[int, str | None, float] = (0, None, time.monotonic())

    def note(self, doing: str | None) -> None:
        """Note what this rank begins to do, as in "rank 3 … for 140 s"; None: nothing that has a time limit."""
        self._now = (self._now[0] + 1, doing, time.monotonic())

    def read(self) -> tuple[int, str | None, float]:
        """Number of notes, the last one, and the seconds since then."""
        count, doing, since = self._now
        return count, doing, time.monotonic() - since


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

    @property
    def progress(self) -> Progress:
        """Progress of this rank, for the others to see."""
        ...

    @property
    def deadline(self) -> Deadline:
        """Time at which this training must have ended."""
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
    """Port of a single process or of a rank of this machine, a torchrun or SLURM. Nobody takes reports, and only
    signals and the deadline end it early."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    progress: Progress = field(default_factory=Progress, compare=False)
    deadline: Deadline = field(default_factory=lambda: Deadline(), compare=False)

    @classmethod
    def from_environment(cls, until: float | None = None) -> LocalPort:
        """Port with the place that the environment variables give, by the names that torchrun has for them.

        Args:
            until: Time at which the training must have ended, see `Deadline`.
        """
        number = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        return cls(
            rank=number["RANK"],
            world=number["WORLD_SIZE"],
            local_rank=number["LOCAL_RANK"],
            local_world=number["LOCAL_WORLD_SIZE"],
            deadline=Deadline(until),
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
        self.progress = Progress()
        self.deadline = Deadline()  # the launcher looks at the clock, and makes the file
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


# --- requests to end --------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """A training was asked to end, and did so after a whole checkpoint.

    Attributes:
        requeue: Whether it is to be started again by itself: a scheduler takes the machine back, or the hours are over.
    """

    def __init__(self, step: int, requeue: bool = False) -> None:
        super().__init__(f"interrupted at step {step}; the same command continues from there")
        self.step, self.requeue = step, requeue


class Preempted(KeyboardInterrupt):
    """SIGUSR1 came before the first step or after the last one, when no checkpoint is due."""


def raise_preempted(number: int, frame: FrameType | None) -> None:
    """Signal handler for SIGUSR1 outside of a `StopRequest`; the ordinary effect would kill the process."""
    raise Preempted("asked to make room; the same command continues")


class Deadline:
    """Time at which a training must have ended, its last checkpoint included.

    It is due before that, by three times what the longest step took until now, since the ranks agree one step later,
    and twice what the longest checkpoint took. As long as no checkpoint was written, its time is unknown, and a tenth
    of the hours, at most ten minutes, is kept for it. A twentieth, at most half a minute, remains for ending the
    processes.

    Args:
        until: Seconds since the epoch, as of `time.time`; None: there is no such time.

    Attributes:
        until: That time.
        step_s: Seconds of the longest step until now.
    """

    def __init__(self, until: float | None = None) -> None:
        self.until = until
        self.step_s = 0.0
        self._whole_s = 0.0 if until is None else max(0.0, until - time.time())
        self._last: float | None = None

    def tick(self) -> None:
        """Note that a step begins. The first one does not count: it may compile, and is not to come again."""
        now = time.monotonic()
        if self._last is not None:
            self.step_s = max(self.step_s, now - self._last)
        self._last = now

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Context whose time counts to no step: what is done there is not done in each of them."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self._last is not None:
                self._last += time.monotonic() - began

    def due(self, checkpoint_s: float | None, ahead_s: float = 0.0) -> bool:
        """Whether the step under way, or the next one, must be the last.

        Args:
            checkpoint_s: Seconds of the longest checkpoint until now; None: there was none.
            ahead_s: Seconds that pass before, by something else than steps.
        """
        if self.until is None:
            return False
        writing = min(600.0, self._whole_s / 10) if checkpoint_s is None else 2 * checkpoint_s
        return time.time() + ahead_s + 3 * self.step_s + writing + min(30.0, self._whole_s / 20) >= self.until


class StopRequest:
    """Context in which a first signal only sets `requested`; a second SIGTERM or SIGINT has its ordinary effect.

    Not everything that comes twice is a second request. Schedulers signal a process and its group, so what follows
    SIGTERM within 5 s counts as the same (but Ctrl-C twice is meant). SIGUSR1 announces a SIGTERM, which then is the
    first one.

    In a rank that our launcher has started here, a second signal has no effect: the launcher passes its own on. A
    person's second signal reaches the launcher, which then kills the ranks.

    Outside the main thread, where Python allows no signal handlers, it handles none: there the launcher asks.

    Args:
        silent: Whether to log nothing, where another process says what follows.

    Attributes:
        requested: Whether a signal came.
        number: Number of the first signal, 0 before that.
        requeue: Whether SIGUSR1 was among them: the training is to be started again by itself.
    """

    def __init__(self, silent: bool = False) -> None:
        self.requested, self.number, self.requeue = False, 0, False
        self._silent, self._patient = silent, MEETING_VARIABLE in os.environ
        self._asked: tuple[int, float] | None = None  # first SIGTERM or SIGINT, and when it came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        if number == signal.SIGUSR1:
            self.requeue = True
        elif self._asked is None:
            self._asked = (number, time.monotonic())
        elif self._is_second(number):
            # With the handlers restored, the signal ends the process.
            self._restore()
            os.kill(os.getpid(), number)
            return
        if first:
            self.requested, self.number = True, number
            if not self._silent:
                log.warning("%s: writing a checkpoint, then stopping", signal.Signals(number).name)

    def _is_second(self, number: int) -> bool:
        """Whether a signal is a request of its own, after one that has come already."""
        assert self._asked is not None
        before, at = self._asked
        ctrl_c = number == before == signal.SIGINT
        return not self._patient and (ctrl_c or time.monotonic() - at >= _ONCE_S)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
