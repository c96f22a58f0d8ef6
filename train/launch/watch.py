"""Watch over ranks that run elsewhere: shows what they log, and ends them in good order."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.launch.failure import Failure, FailureLog
from train.run.metrics import read_metrics
from train.run.run_folder import RunFolder
from train.trainer.checkpoint_files import LAST

log = logging.getLogger(__name__)

_POLL_S = 0.2
_STOP_PATIENCE_S = 120.0
"""Seconds to wait for a checkpoint, in addition to the time of a few steps."""
_STOP_PATIENCE_STEPS = 3
"""Number of those steps: ranks ask for a notice every other step, and then finish one."""
_FINAL = ("user", "machine")
"""Kinds of failures that another start does not mend."""


class Watch:
    """Watch over a training, in a thread while the main thread waits in Ray.

    It shows what rank 0 logs. It ends the workers when one has failed so that another start does not mend it. On a
    first signal it has them write a checkpoint before that, on a second one not.

    Attributes:
        asked: Number of signals that came.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.asked = 0
        self._kill: Callable[[], None] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def over(self, kill: Callable[[], None]) -> None:
        """Begin to watch over workers that are being started; `kill` ends them."""
        self._kill = kill

    def _signal(self, number: int, frame: object) -> None:
        self.asked += 1
        if self._kill is None:
            raise KeyboardInterrupt  # no workers yet: end as usual
        told = "writing a checkpoint, then stopping (a second time: at once)" if self.asked == 1 else "stopping at once"
        log.warning("%s: %s", signal.Signals(number).name, told)

    def _look(self) -> None:
        # Until the end: show the log, and look for a reason to end the workers.
        failures, tail = FailureLog(self.run.logs), _Tail(FailureLog(self.run.logs).rank_file(0))
        while not self._ended.wait(_POLL_S):
            tail.show()
            if self._kill is not None and (self.asked or _is_final(failures.first())):
                if self.asked:
                    self._await_checkpoint(tail)
                # Killed once; Ray then ends `fit`, whose caller leaves the block and so sets `_ended`.
                self._kill()
                break
        self._ended.wait()
        tail.show()

    def _await_checkpoint(self, tail: _Tail) -> None:
        # The ranks find the stop file at their next question (`RayPort.preempting`) and write a checkpoint.
        before = _last(self.run)
        self.run.stop_file.touch()
        deadline = time.monotonic() + _STOP_PATIENCE_S + _STOP_PATIENCE_STEPS * _step_seconds(self.run)
        # Until there is a newer checkpoint, another signal, no patience left, or the training has ended.
        while self.asked < 2 and _last(self.run) == before and time.monotonic() < deadline:
            if self._ended.wait(_POLL_S):
                break
            tail.show()
        self.run.stop_file.unlink(missing_ok=True)


def _is_final(failure: Failure | None) -> bool:
    return failure is not None and failure.kind in _FINAL


class _Tail:
    """Reader of the log of rank 0, wherever that runs, that copies it to stderr."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = file.stat().st_size if file.exists() else 0

    def show(self) -> None:
        """Copy what was added since the last call."""
        if not self.file.exists():
            return
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            text = stream.read()
        self.offset += len(text)
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()


def _step_seconds(run: RunFolder) -> float:
    """Seconds of a step by the newest line of figures; 0 without one."""
    curve = read_metrics(run.metrics).training.get("step_s")
    return (curve.last if curve else None) or 0.0


def _last(run: RunFolder) -> str | None:
    """Name of the newest checkpoint, which is written when the checkpoint is whole; None without one."""
    file = run.checkpoints / LAST
    return file.read_text() if file.exists() else None
