"""Patience with stores and file servers whose errors pass: how often a request is made again, and how long in all.

A store that is asked for too much answers 503, and is asked for less when its clients wait. So the waiting grows from
one try to the next and is drawn anew each time ("full jitter", Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015): clients that met the same fault do not come back together.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from talkinghead.runtime.errors import error_text, naming

log = logging.getLogger(__name__)

STORE_PATIENCE = "TALKINGHEAD_STORE_PATIENCE_S"
"""Environment variable: seconds for which a request to an object store is made again while the store is overloaded or
cannot be reached; 0: it is made once."""
_STORE_PATIENCE_S = 300.0
FIRST_S = 0.5
"""Longest waiting before the second try; it doubles from try to try, up to `LONGEST_S`."""
LONGEST_S = 15.0
"""Longest waiting between two tries: a minute of 503 costs a dozen requests."""
LOCAL_S = 10.0
"""Seconds for which a local read is made again: a file server that starts anew, not one that is gone."""
TELL_EVERY_S = 30.0
"""Seconds between two warnings about the same place, in one process."""

_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
"""Errors of local reads that a mount over the network gives while its server fails over."""

T = TypeVar("T")
_draw = random.SystemRandom().random  # of no seed: forked readers would wait alike, and nobody's draws are disturbed


@dataclass(frozen=True)
class Clock:
    """Time that passes, and waiting."""

    now: Callable[[], float] = time.monotonic
    """Seconds since some moment."""
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = _draw
    """Number drawn uniformly in 0 … 1."""


class Retries:
    """Number of requests of this process that were made again, and the seconds that it waited for them.

    Attributes:
        listener: Function that is called before each waiting; None: nobody wants to know.
    """

    def __init__(self) -> None:
        self.listener: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._number, self._seconds = 0, 0.0

    def add(self, number: int, seconds: float) -> None:
        """Count retries, also those that another process has counted."""
        with self._lock:
            self._number += number
            self._seconds += seconds

    def take(self) -> tuple[int, float]:
        """Number and seconds since this was asked last."""
        with self._lock:
            taken = self._number, self._seconds
            self._number, self._seconds = 0, 0.0
        return taken


RETRIES = Retries()
"""Count of this process: storages are opened in many places, and a training logs what all of them waited for."""


class Tries:
    """Tries of one request.

    Args:
        place: Store or file that is asked, for messages.
        clock: Time.

    Attributes:
        number: Tries so far that failed.
        seconds: Seconds since the first one failed.
    """

    def __init__(self, place: str, clock: Clock | None = None) -> None:
        self.place, self.clock = place, clock or Clock()
        self.number, self.seconds = 0, 0.0
        self._failed_at = 0.0
        self._told = False

    def again(self, patience_s: float, reason: str) -> bool:
        """Wait after a failed try.

        Args:
            patience_s: Seconds after the first failure in which a try may still begin; 0: there is no other.
            reason: What was wrong, one line.

        Returns:
            False when no further try is to be made.
        """
        now = self.clock.now()
        if not self.number:
            self._failed_at = now
        self.number += 1
        self.seconds = now - self._failed_at
        left = patience_s - self.seconds
        if left <= 0:
            return False
        self._tell(patience_s, reason)
        if RETRIES.listener is not None:
            RETRIES.listener()
        # The doubling is bounded, too: a float has no 2 ** 2000.
        waiting = self.clock.draw() * min(LONGEST_S, FIRST_S * 2 ** min(self.number - 1, 20))
        waiting = min(waiting, left)
        self.clock.sleep(waiting)
        RETRIES.add(1, waiting)
        return True

    def succeeded(self) -> None:
        """Say that the place answers again, where its silence was told."""
        if self._told:
            log.warning("%s answers again, after %.1f s and %d tries", self.place, self._waited(), self.number + 1)

    @property
    def summary(self) -> str:
        """What was tried, for the message of a request that was given up; empty after a single try."""
        return f" (tried {self.number} times in {self.seconds:.0f} s)" if self.number > 1 else ""

    def _waited(self) -> float:
        return self.clock.now() - self._failed_at

    def _tell(self, patience_s: float, reason: str) -> None:
        """Warn when it begins, and now and then: one warning for all requests of this process to a place."""
        now = self.clock.now()
        with _TELLING:
            if now - _TOLD.get(self.place, float("-inf")) < TELL_EVERY_S:
                return
            _TOLD[self.place] = now
        self._told = True
        log.warning(
            "%s: %s; %s, for up to %.0f s",
            self.place,
            reason,
            f"tried {self.number} times in {self.seconds:.0f} s and going on" if self.number > 1 else "trying again",
            patience_s,
        )


_TOLD: dict[str, float] = {}
"""Place → when it was last told about."""
_TELLING = threading.Lock()


def store_patience() -> float:
    """Seconds of patience with an object store.

    Raises:
        ValueError: The environment names no such number.
    """
    given = os.environ.get(STORE_PATIENCE, "").strip()
    try:
        seconds = float(given) if given else _STORE_PATIENCE_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{STORE_PATIENCE} is {given!r}: it must be a number of seconds, at least 0")
    return seconds


def read_locally(file: str | Path, read: Callable[[], T], clock: Clock | None = None) -> T:
    """Result of reading a local file; what a file server's failing over spoils is read again for some seconds.

    Args:
        file: The file, which errors of the operating system then name.
        read: Opens and reads, anew for each try.
        clock: Time.

    Raises:
        OSError: It cannot be read.
    """
    tries = Tries(str(file), clock)
    while True:
        try:
            with naming(file):
                found = read()
        except OSError as error:
            if error.errno not in _PASSING or not tries.again(LOCAL_S, error_text(error)):
                raise
        else:
            tries.succeeded()
            return found
