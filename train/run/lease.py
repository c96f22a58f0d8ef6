"""Lease of a RUN on an object store: the right of one training, on whichever machine, to write there.

It is an object that names its holder, made and replaced by conditional writes only. The holder renews it, which changes
its ETag. Who wants it and finds a holder watches: an ETag that changes is a training that lives; one that does not
change for three times the interval between renewals, by the watcher's own clock, is a training that died, and the lease
may be taken over. No two machines' clocks are compared. A holder that was only cut off for so long finds another ETag
when it comes back: it has lost the lease, and may write no more.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass

from talkinghead.files.foreign import parse_json
from talkinghead.files.s3_files import S3Files, Version
from talkinghead.runtime.errors import UnreachableError

log = logging.getLogger(__name__)

RENEW_S = 10.0
"""Seconds between two renewals."""
_MISSED = 3
"""Number of renewals that a holder may miss."""
_LONGEST_S = 600.0
_LOOK_S = 0.5


class LeaseLost(ValueError):
    """Another training has taken a RUN over; this one may write no more."""


@dataclass(frozen=True)
class _Content:
    """What the object says."""

    holder: str = ""
    """Words about the holder; empty: nobody holds it."""
    token: str = ""
    """Secret-free name of the last holding, drawn for each."""
    count: int = 0
    """Number of renewals."""
    renew_s: float = RENEW_S
    """Seconds between two renewals of this holder."""

    def to_bytes(self) -> bytes:
        return json.dumps(self.__dict__, sort_keys=True).encode()

    @classmethod
    def of(cls, version: Version, where: str) -> _Content:
        try:
            value = parse_json(version.data[:10_000], "it")
            found = cls(str(value["holder"])[:300], str(value["token"])[:100], 0, float(value["renew_s"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is no lease of a training: remove it, or take another RUN") from error
        if not 0 < found.renew_s <= _LONGEST_S:
            raise ValueError(f"{where} is no lease of a training: remove it, or take another RUN")
        return found


class Lease:
    """Lease of one RUN, held by at most one training.

    Args:
        files: Files of RUN.
        path: Name of the object below RUN.
        renew_s: Seconds between two renewals.

    Attributes:
        token: Name of this holding; empty before `take`.
    """

    def __init__(self, files: S3Files, path: str, renew_s: float = RENEW_S) -> None:
        self._files, self._path, self._renew_s = files, path, renew_s
        self._where = f"{files.uri.partition('?')[0]}/{path}"
        self.token = ""
        self._tag = ""
        self._count = 0
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, patience_s: float = 0.0, dead: str = "") -> None:
        """Take the lease, and renew it in a thread until `release`.

        Args:
            patience_s: Seconds to wait for another training that is just ending.
            dead: Token of a holding that is known to have ended without a word: it is taken over at once.

        Raises:
            ValueError: Another training holds it; the message names it.
            UnreachableError: The store does not answer.
        """
        token = uuid.uuid4().hex
        mine = _Content(_this_process(), token, 0, self._renew_s).to_bytes()
        deadline = time.monotonic() + patience_s
        watched, dead_at = "", 0.0
        while True:
            there = self._files.read(self._path)
            if there is None:
                tag = self._files.create(self._path, mine)
            else:
                known = _Content.of(there, self._where)
                free = not known.holder or known.token == dead
                now = time.monotonic()
                # Another version than a moment ago: whoever made it lives. The watch begins anew.
                if there.tag != watched:
                    if not free and watched and now >= deadline:
                        raise ValueError(
                            f"a training runs in {self._files.uri} ({known.holder}): wait for it or stop it"
                        )
                    if not free and not watched:
                        log.info("%s is held by %s: looking whether that lives", self._where, known.holder)
                    watched, dead_at = there.tag, now + _MISSED * known.renew_s
                if not free and now < dead_at:
                    time.sleep(min(_LOOK_S, known.renew_s / 4))
                    continue
                tag = self._files.replace(self._path, mine, there.tag)
            # Of several who try at once one has it; the others look again, who that is.
            if tag is not None:
                break
        self.token, self._tag, self._count, self._lost = token, tag, 0, None
        self._ended.clear()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLost` where another training has taken over, as far as is known by now."""
        if self._lost is not None:
            raise LeaseLost(self._lost)

    def lose(self) -> LeaseLost:
        """Note that another training has taken over; returns the error that says so."""
        there = self._files.read(self._path)
        holder = "" if there is None else _Content.of(there, self._where).holder
        by = f" ({holder})" if holder else ""
        self._lost = (
            f"another training has taken over {self._files.uri}{by}, since this one could not renew its lease: this"
            " one ends"
        )
        return LeaseLost(self._lost)

    def release(self) -> None:
        """Give the lease back, if it is still held; a store that does not answer is only logged."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        if self._lost is not None:
            return
        free = _Content("", self.token, self._count + 1, self._renew_s)
        try:
            self._files.replace(self._path, free.to_bytes(), self._tag)
        except UnreachableError as error:
            log.warning("the lease is not given back, and runs out by itself: %s", error)

    def _renew(self) -> None:
        while not self._ended.wait(self._renew_s):
            self._count += 1
            mine = _Content(_this_process(), self.token, self._count, self._renew_s)
            try:
                tag = self._files.replace(self._path, mine.to_bytes(), self._tag)
                if tag is None:
                    log.error("%s", self.lose())
                    return
                self._tag = tag
            except UnreachableError as error:
                # The next renewal tells whether anybody has used the time.
                log.warning("the lease is not renewed: %s", error)


def _this_process() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in a container
        user = str(os.getuid())
    return f"process {os.getpid()} on {socket.gethostname()} by {user}"
