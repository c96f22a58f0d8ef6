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

from train.launch.failure import FailureLog, Repetition
from train.run.metrics import read_metrics
from train.run.run_folder import RunFolder
from train.trainer.checkpoint_files import LAST, whole_steps
from train.trainer.port import Deadline, raise_preempted

log = logging.getLogger(__name__)

_POLL_S = 0.2
_STOP_PATIENCE_S = 120.0
"""Seconds to wait for a checkpoint, in addition to the time of a few steps."""
_STOP_PATIENCE_STEPS = 3
"""Number of those steps: ranks ask for a notice every other step, and then finish one."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Watch:
    """Watch over a training, in a thread while the main thread waits in Ray.

    It shows what rank 0 logs. It ends the workers when one has failed so that another start does not mend it. On a
    first signal, or when the hours are over, it has them write a checkpoint before that, on a second signal not.

    Args:
        run: Folder of the run.
        until: Time at which the training must have ended; see `Deadline`.

    Attributes:
        asked: Number of signals that came, and 1 for the end of the hours.
        requeue: Whether the training is to be started again by itself: SIGUSR1 came, or the hours are over.
    """

    def __init__(self, run: RunFolder, until: float | None = None) -> None:
        self.run = run
        self.asked, self.requeue = 0, False
        self._deadline = Deadline(until)
        self._repetition = Repetition()
        self._kill: Callable[[], None] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._signal) for number in _SIGNALS}
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
        self.requeue = self.requeue or number == signal.SIGUSR1
        if self._kill is None:
            # No workers yet: end as usual.
            raise_preempted(number, None) if self.requeue else signal.default_int_handler(number, None)
        told = "writing a checkpoint, then stopping (a second time: at once)" if self.asked == 1 else "stopping at once"
        log.warning("%s: %s", signal.Signals(number).name, told)

    def _look(self) -> None:
        # Until the end: show the log, and look for a reason to end the workers.
        failures, tail = FailureLog(self.run.logs), _Tail(FailureLog(self.run.logs).rank_file(0))
        while not self._ended.wait(_POLL_S):
            tail.show()
            self._look_at_the_clock()
            if self._kill is not None and (self.asked or self._is_final(failures)):
                if self.asked:
                    self._await_checkpoint(tail)
                # Killed once; Ray then ends `fit`, whose caller leaves the block and so sets `_ended`.
                self._kill()
                break
        self._ended.wait()
        tail.show()

    def _look_at_the_clock(self) -> None:
        # How long a checkpoint takes only the ranks know, which are told of it a few steps before its end.
        self._deadline.step_s = _STOP_PATIENCE_STEPS * _step_seconds(self.run) if self._deadline.until else 0.0
        if not self.asked and self._deadline.due(None):
            self.asked, self.requeue = 1, True
            log.warning("the hours of --max-hours are over: writing a checkpoint, then stopping")

    def _is_final(self, failures: FailureLog) -> bool:
        failure = failures.first()
        return failure is not None and self._repetition.final(
            failure, max(whole_steps(self.run.checkpoints), default=None)
        )

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
