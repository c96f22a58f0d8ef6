"""A training that is asked to end: SIGTERM (a scheduler takes the machine back) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The training was asked to end, and did so behind a whole checkpoint."""

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
