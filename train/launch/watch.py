"""Looking after ranks that run elsewhere: showing what they log, and ending them in good order."""

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
"""A checkpoint is waited for so long, and for a few steps."""
_STOP_PATIENCE_STEPS = 3
_FINAL = ("user", "machine")
"""Kinds of failures that no further try mends."""


class Watch:
    """Looks after a run in a thread while the main thread waits in Ray.

    Shows what rank 0 logs; ends the workers when one has said what no further try mends; on a signal has them write a
    checkpoint first, on a second one not.

    Attributes:
        asked: Signals that came.
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
        """The workers are being started; `kill` ends them."""
        self._kill = kill

    def _signal(self, number: int, frame: object) -> None:
        self.asked += 1
        if self._kill is None:
            raise KeyboardInterrupt
        told = "writing a checkpoint, then stopping (a second time: at once)" if self.asked == 1 else "stopping at once"
        log.warning("%s: %s", signal.Signals(number).name, told)

    def _look(self) -> None:
        failures, tail = FailureLog(self.run.logs), _Tail(FailureLog(self.run.logs).rank_file(0))
        while not self._ended.wait(_POLL_S):
            tail.show()
            if self._kill is not None and (self.asked or _is_final(failures.first())):
                if self.asked:
                    self._await_checkpoint(tail)
                self._kill()
                break
        self._ended.wait()
        tail.show()

    def _await_checkpoint(self, tail: _Tail) -> None:
        before = _last(self.run)
        self.run.stop_file.touch()
        deadline = time.monotonic() + _STOP_PATIENCE_S + _STOP_PATIENCE_STEPS * _step_seconds(self.run)
        while self.asked < 2 and _last(self.run) == before and time.monotonic() < deadline:
            if self._ended.wait(_POLL_S):
                break
            tail.show()
        self.run.stop_file.unlink(missing_ok=True)


def _is_final(failure: Failure | None) -> bool:
    return failure is not None and failure.kind in _FINAL


class _Tail:
    """Shows on stderr what rank 0 logs, wherever it runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = file.stat().st_size if file.exists() else 0

    def show(self) -> None:
        """What has come since."""
        if not self.file.exists():
            return
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            text = stream.read()
        self.offset += len(text)
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()


def _step_seconds(run: RunFolder) -> float:
    """How long a step takes, as far as one was logged."""
    curve = read_metrics(run.metrics).training.get("step_s")
    return (curve.last if curve else None) or 0.0


def _last(run: RunFolder) -> str | None:
    """Name of the newest checkpoint, said when nothing of it is left to write."""
    file = run.checkpoints / LAST
    return file.read_text() if file.exists() else None
