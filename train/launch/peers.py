"""Peers: a line from each rank to rank 0, by which all of them end within seconds when one has ended or stands still.

A rank that waits for the others in a collective learns late that one of them is gone: gloo when a connection closes,
NCCL only after `parallel.timeout_s`. So a thread of each rank keeps a TCP connection to rank 0 and sends a sign of life
every second, whatever the main thread waits for (collectives and reading release the interpreter's lock). What then
ends all ranks, with the reason in RUN/logs:

- A line closes without a word: its rank was killed, or its machine.
- Nothing came over a line for `parallel.silence_s`: its rank is stopped, or its machine or network is gone.
- A rank says that it has failed, and why.
- A rank beats, but stands still in a step for `parallel.timeout_s` while others wait for it. Signs of life tell how far
  the main thread is, so the rank that the others wait for is named, not one of those that wait.

The first cause counts. A rank that only noticed that it lost another one asks rank 0, which knows more. Ranks that come
to their end say goodbye, and may leave one by one.

Rank 0 listens on loopback where all ranks are on one machine, else on all interfaces: the others come to MASTER_ADDR,
through whatever names and routes lead there. Both sides of a line show that they know the secret of this start (HMAC
over numbers that each has drawn) before anything else is read from it; without a secret of the launcher, rank 0 draws
one and sends it through the process group.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import select
import selectors
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist

from talkinghead.config import from_json
from talkinghead.files.uri import hide_known_secrets
from talkinghead.runtime.errors import printable
from train.config import ParallelConfig
from train.launch.failure import Failure, FailureLog, StrangerError
from train.launch.flight_recorder import dump
from train.launch.line import SEND_S, Line, proof
from train.launch.meeting import Meeting
from train.launch.roster import GONE, SILENT, Roster
from train.trainer.port import Port, Progress

log = logging.getLogger(__name__)

_BEAT_S = 1.0
_POLL_S = 0.2
_HANDSHAKE_S = 20.0
_GRACE_S = 2.0
"""Seconds in which a cause may come after a rank has only said that it lost another one."""
_LEAVE_S = 10.0
"""Seconds that a rank that failed has to close its files. The destructor of a process group may wait for ever."""
_TEXT = 2000
"""Characters of a failure's message that go over a line."""


@contextlib.contextmanager
def watched(
    port: Port, meeting: Meeting | None, failures: FailureLog, config: ParallelConfig
) -> Iterator[Callable[[Failure], None] | None]:
    """Context in which the ranks watch over each other. Collective; needs the process group.

    Args:
        port: Place of this rank.
        meeting: Where the ranks meet, and their secret; None: the launcher has none.
        failures: Place for the reason, when ranks end.
        config: How long a rank may be silent, or stand still.

    Yields:
        Function that tells the other ranks that this one has failed; None for a single rank, which has none to tell.

    Raises:
        StrangerError: What answers at the place of rank 0 does not know the secret.
        OSError: Rank 0 cannot be reached.
    """
    if port.world == 1:
        yield None
        return
    alone = (meeting is not None and meeting.store is not None) or port.local_world == port.world
    # Under our launchers, who take and send only signed objects, a stranger's place is refused here.
    place: list[Any] = [None]
    hub = None
    if port.rank == 0:
        hub = Hub(port, failures, config, alone=alone, key=meeting.key if meeting else secrets.token_bytes(32))
        place = [{"number": hub.number, "key": None if meeting else hub.key.hex()}]
    dist.broadcast_object_list(place, src=0)
    if hub is None:
        key = meeting.key if meeting else bytes.fromhex(place[0]["key"])
        address = "127.0.0.1" if alone else os.environ["MASTER_ADDR"]
        peers: Peers = Member(port, failures, config, address=(address, place[0]["number"]), key=key)
    else:
        peers = hub
    # A launcher of our own prints what the ranks write down; under a torchrun or SLURM they print it themselves.
    peers.prints = meeting is None
    with peers:
        yield peers.failed


# --- the two ends -----------------------------------------------------------------------------------------------------


class Peers(ABC):
    """Part of a rank in the watch, in a thread of its own; a context.

    Args:
        port: Place of this rank.
        failures: Place for the reason, when this rank ends.
        config: How long a rank may be silent, or stand still.

    Attributes:
        prints: Whether this rank prints the reason if it is the first to write it down.
        leave: Function that ends the process with a status.
    """

    def __init__(self, port: Port, failures: FailureLog, config: ParallelConfig) -> None:
        self.rank, self.world = port.rank, port.world
        self.progress: Progress = port.progress
        self.failures, self.config = failures, config
        self.prints = False
        self.leave: Callable[[int], Any] = os._exit
        self._reported: Failure | None = None
        self._leave_at = float("inf")
        self._closed, self._told = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)

    def __enter__(self) -> Peers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # What the others must know of, they know already: the end or an interruption on which all have agreed.
        if self._reported is None:
            self._say_goodbye()
        self._closed.set()
        self._thread.join(SEND_S + _POLL_S)
        self._close()

    def failed(self, failure: Failure) -> None:
        """Tell the others that this rank has failed; they end. Called by the main thread, before it closes its files.

        A rank that only lost another one waits for rank 0 to say why, and ends meanwhile.
        """
        self._reported = failure
        self._leave_at = time.monotonic() + _LEAVE_S
        self._tell(replace(failure, message=failure.message[:_TEXT]))
        self._told.wait(2 * _GRACE_S + SEND_S if failure.kind == "peer" else SEND_S)

    def _end(self, failure: Failure) -> None:
        """End this process because of another rank: at once, whatever the main thread waits for."""
        if self._closed.is_set():
            return
        first = False
        with contextlib.suppress(OSError):
            first = self.failures.claim(failure)
        log.warning("rank %d ends: %s", self.rank, failure.message)
        if first and self.prints:
            print(printable(hide_known_secrets(failure.line)), file=sys.stderr, flush=True)
        dump(self.failures.folder, self.rank)
        self._exit(failure.status)

    def _exit(self, status: int) -> None:
        self.leave(status)  # reading processes and validations end with their rank
        self._told.set()
        self._closed.set()

    def _late(self, now: float) -> bool:
        """Whether the main thread has failed long ago, and does not come to its end."""
        return now > self._leave_at

    @abstractmethod
    def _watch(self) -> None:
        """Work of the thread."""

    @abstractmethod
    def _tell(self, failure: Failure) -> None:
        """Tell the other ranks of a failure of this one."""

    @abstractmethod
    def _say_goodbye(self) -> None:
        """Tell the other ranks that this one comes to its end."""

    @abstractmethod
    def _close(self) -> None:
        """Close what is open."""


class Hub(Peers):
    """Rank 0, to which all lines lead, and which decides.

    Args:
        port: Place of this rank.
        failures: Place for the reason, when this rank ends.
        config: How long a rank may be silent, or stand still.
        alone: Whether all ranks are on this machine.
        key: Secret of the ranks.

    Attributes:
        number: Number of the TCP port.
    """

    def __init__(self, port: Port, failures: FailureLog, config: ParallelConfig, *, alone: bool, key: bytes) -> None:
        super().__init__(port, failures, config)
        self.key = key
        self.roster = Roster(port.world, time.monotonic())
        if alone or not socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("127.0.0.1" if alone else "", 0), backlog=self.world)
        else:
            self._listener = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.world
            )
        self._listener.setblocking(False)
        self.number: int = self._listener.getsockname()[1]
        self._lines: list[Line] = []
        self._verdict: Failure | None = None
        self._vague: tuple[Failure, float] | None = None  # a rank lost another one, and until when it waits for why
        self._leaving = False

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            before = beat_at = time.monotonic()
            while not self._closed.is_set():
                for key, _ in selector.select(_POLL_S):
                    if key.data is None:
                        self._accept(selector)
                    elif not self._read(key.data):
                        self._drop(selector, key.data)
                now = time.monotonic()
                # This process itself may have been stopped: what the others have sent meanwhile waits to be read.
                if now - before > self.config.silence_s / 2:
                    self.roster.slept(now - before)
                before = now
                count, doing, for_s = self.progress.read()
                self.roster.beat(0, now, count, doing, for_s)
                if now >= beat_at:
                    beat_at = now + _BEAT_S
                    for line in self._known():
                        line.send(beat=count)
                    self._refuse(selector, now)
                self._judge(now)

    def _judge(self, now: float) -> None:
        """End all ranks if there is a reason."""
        if self._late(now):
            self._exit(1)
        if self._told.is_set():
            return
        failure = self._verdict
        if failure is None and self._vague is not None and now > self._vague[1]:
            failure = self.roster.laggard(now) or self._vague[0]
        if failure is None and not self._leaving:
            failure = self.roster.silent(now, self.config.silence_s)
            failure = failure or self.roster.laggard(now, self.config.timeout_s)
        if failure is None:
            return
        for line in self._known():
            line.send(failure=asdict(failure))
        # A failure of this rank's own: its main thread ends it.
        if self._reported is not None and self._reported.kind != "peer":
            self._told.set()
        else:
            self._end(failure)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            line = Line(connection)
            self._lines.append(line)
            selector.register(connection, selectors.EVENT_READ, line)
            line.send(nonce=line.nonce)

    def _refuse(self, selector: selectors.BaseSelector, now: float) -> None:
        """Close connections that do not show that they are a rank's."""
        for line in [line for line in self._lines if line.rank is None and now - line.since > _HANDSHAKE_S]:
            self._drop(selector, line)

    def _drop(self, selector: selectors.BaseSelector, line: Line) -> None:
        selector.unregister(line.socket)
        line.close()
        self._lines.remove(line)

    def _known(self) -> list[Line]:
        """Lines of ranks."""
        return [line for line in self._lines if line.rank is not None]

    def _read(self, line: Line) -> bool:
        """Take what has come over a line; whether the line stays open."""
        messages = line.receive()
        now = time.monotonic()
        if messages is None:
            # Closed. Of a rank that has not said why or goodbye it is the first that is heard of its end.
            if line.rank in self.roster.signs and line.rank is not None and not self._leaving:
                self._decide(Failure(kind="lost", message=f"{self.roster.name(line.rank)} {GONE}", rank=line.rank), now)
            return False
        try:
            return all(self._take(line, message, now) for message in messages)
        except (KeyError, TypeError, ValueError, AttributeError):
            return line.rank is not None  # a stranger's

    def _take(self, line: Line, message: dict[str, Any], now: float) -> bool:
        """Take a message; whether the line stays open."""
        if line.rank is None:
            rank, nonce = int(message["rank"]), str(message["nonce"])
            expected = proof(self.key, "member", rank, line.nonce, nonce)
            if not hmac.compare_digest(str(message["proof"]).encode(), expected.encode()):
                return False
            line.rank = rank
            self.roster.hosts[rank] = str(message["host"])
            self.roster.beat(rank, now, 0, None, 0.0)
            line.send(proof=proof(self.key, "hub", rank, line.nonce, nonce))
        elif "beat" in message:
            self.roster.beat(line.rank, now, int(message["beat"]), message["doing"], float(message["for_s"]))
        elif "failure" in message:
            self.roster.leave(line.rank)
            self._decide(from_json(Failure, message["failure"]), now)
        elif "bye" in message:
            self.roster.leave(line.rank)
        return True

    def _decide(self, failure: Failure, now: float) -> None:
        """Take a failure as the reason, if it is the first; one that is no cause waits for another."""
        if failure.kind != "peer":
            self._verdict = self._verdict or failure
        elif self._vague is None:
            self._vague = failure, now + _GRACE_S

    def _tell(self, failure: Failure) -> None:
        self._decide(failure, time.monotonic())

    def _say_goodbye(self) -> None:
        self._leaving = True
        for line in self._known():
            line.send(bye=0)

    def _close(self) -> None:
        for line in self._lines:
            line.close()
        self._listener.close()


class Member(Peers):
    """Any other rank, with its line to rank 0.

    Args:
        port: Place of this rank.
        failures: Place for the reason, when this rank ends.
        config: How long a rank may be silent, or stand still.
        address: Where rank 0 listens.
        key: Secret of the ranks.

    Raises:
        StrangerError: What answers there does not know the secret.
        OSError: Rank 0 cannot be reached.
    """

    def __init__(
        self, port: Port, failures: FailureLog, config: ParallelConfig, *, address: tuple[str, int], key: bytes
    ) -> None:
        super().__init__(port, failures, config)
        try:
            self._line = Line(socket.create_connection(address, timeout=_HANDSHAKE_S))
        except OSError as error:
            where = f"{address[0]}:{address[1]}"
            raise ConnectionError(
                f"rank {self.rank} on {socket.gethostname()} cannot reach rank 0 at {where}: {error.strerror or error}"
            ) from error
        nonce = self._line.nonce
        hub = str(self._answer(address)["nonce"])
        own = proof(key, "member", self.rank, hub, nonce)
        self._line.send(rank=self.rank, nonce=nonce, host=socket.gethostname(), proof=own)
        given = str(self._answer(address).get("proof"))
        if not hmac.compare_digest(given.encode(), proof(key, "hub", self.rank, hub, nonce).encode()):
            raise StrangerError(f"at {address[0]}:{address[1]} answers something else than rank 0 of this training")
        self._line.rank = 0

    def _answer(self, address: tuple[str, int]) -> dict[str, Any]:
        """Next message of the handshake."""
        deadline = time.monotonic() + _HANDSHAKE_S
        while time.monotonic() < deadline:
            messages = self._line.receive()
            if messages is None:
                break
            if messages:
                return messages[0]
        raise StrangerError(f"at {address[0]}:{address[1]} nothing answers as rank 0 of this training does")

    def _watch(self) -> None:
        before = beat_at = seen = time.monotonic()
        while not self._closed.is_set():
            messages: list[dict[str, Any]] | None = []
            if select.select([self._line.socket], [], [], _POLL_S)[0]:
                messages = self._line.receive()
            now = time.monotonic()
            if now - before > self.config.silence_s / 2:  # this process itself was stopped
                seen = now
            before = now
            if messages is None:
                self._without_rank_zero(GONE)
                return
            for message in messages:
                seen = now
                if "failure" in message and (self._reported is None or self._reported.kind == "peer"):
                    self._end(from_json(Failure, message["failure"]))
                    return
                if "bye" in message:
                    return
            if now >= beat_at:
                beat_at = now + _BEAT_S
                count, doing, for_s = self.progress.read()
                self._line.send(beat=count, doing=doing, for_s=for_s)
            if now - seen > self.config.silence_s:
                self._without_rank_zero(SILENT.format(now - seen))
                return
            if self._late(now):
                self._exit(1)

    def _without_rank_zero(self, what: str) -> None:
        if self._reported is None or self._reported.kind == "peer":
            self._end(Failure(kind="lost", message=f"rank 0 {what}", rank=0))
        elif not self._closed.wait(max(0.0, self._leave_at - time.monotonic())):
            self._exit(1)

    def _tell(self, failure: Failure) -> None:
        self._line.send(failure=asdict(failure))
        if failure.kind != "peer":
            self._told.set()

    def _say_goodbye(self) -> None:
        self._line.send(bye=0)

    def _close(self) -> None:
        self._line.close()
