"""What a rank knows of the world outside: its place among the ranks, its launcher, and who asks it to end.

So the training loop needs to know no launcher. A run may be cut short in two ways: the launcher says so beforehand
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

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""SIGTERM: a scheduler takes the machine back. SIGINT: Ctrl-C."""


class Port(Protocol):
    """A rank's place among the ranks, and its line to whoever started them."""

    @property
    def rank(self) -> int:
        """This process, 0 … world - 1."""
        ...

    @property
    def world(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def local_rank(self) -> int:
        """This process among those of its machine."""
        ...

    @property
    def local_world(self) -> int:
        """How many ranks run on this machine."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """Say how far the run is. Every rank calls it at the same steps."""
        ...

    def preempting(self) -> bool:
        """Whether this run will soon be cut short, so that a checkpoint is due now; True once for each notice.

        Every rank calls it at the same steps: they may wait for each other in it. It costs milliseconds: ask once in
        a second or so.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LocalPort:
    """One process alone, or one of those that torchrun started. Nobody listens, nobody preempts (but by a signal)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> LocalPort:
        """The place that torchrun's variables say."""
        number = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        return cls(
            rank=number["RANK"],
            world=number["WORLD_SIZE"],
            local_rank=number["LOCAL_RANK"],
            local_world=number["LOCAL_WORLD_SIZE"],
        )

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody listens."""

    def preempting(self) -> bool:
        """Never."""
        return False


class RayPort:
    """A worker of Ray Train.

    Args:
        session: The module `ray.train`; only the launcher imports it.
        stop_file: Put there by the launcher when it will end the run at the next checkpoint.
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
        """Show the figures in Ray's state; checkpoints are not Ray's."""
        # Without waiting for the controller, which looks only every 2 s.
        mode = self._session.CheckpointUploadMode.ASYNC
        self._session.report(dict(metrics), checkpoint_upload_mode=mode)

    def preempting(self) -> bool:
        """Whether Ray drains a node of this run, or the launcher was asked to stop."""
        notice = (self._session.get_preemption_info(), self._stop_file.exists())
        new = notice != self._known and notice != (None, False)
        self._known = notice
        return new


# --- signals ----------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """The training was asked to end, and did so after a whole checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted at step {step}; the same command continues from there")
        self.step = step


@contextmanager
def unsignalled() -> Iterator[None]:
    """Processes that are started within never see SIGTERM or SIGINT; the own one sees them afterwards.

    torchrun, schedulers and Ctrl-C signal whole process groups. Reading processes that died of it would take the
    training with them before its checkpoint is written.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """Within the `with` block the first signal only sets `requested`; a second one has its ordinary effect.

    Outside the main thread, where Python lets nobody handle signals, it handles none: there the launcher says when.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        log.warning("%s: writing a checkpoint, then stopping", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
