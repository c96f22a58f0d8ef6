"""Ranks that watch over each other: with real connections, the ends of several ranks in one process."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train.config import ParallelConfig
from train.launch.failure import Failure, FailureLog, StrangerError
from train.launch.peers import Hub, Member, Peers
from train.trainer.port import LocalPort

KEY = b"k" * 32


class Start:
    """Ranks of one start. Instead of ending the process, a rank notes its exit status."""

    def __init__(self, folder: Path, world: int, **config: float) -> None:
        self.failures = FailureLog(folder)
        self.config = ParallelConfig(**{"silence_s": 60.0, **config})  # type: ignore[arg-type]
        self.ports = [LocalPort(rank=rank, world=world) for rank in range(world)]
        self.hub = Hub(self.ports[0], self.failures, self.config, alone=True, key=KEY)
        self.ranks: list[Peers] = [self._entered(self.hub)]
        for port in self.ports[1:]:
            place = ("127.0.0.1", self.hub.number)
            self.ranks.append(self._entered(Member(port, self.failures, self.config, address=place, key=KEY)))

    def _entered(self, peers: Peers) -> Peers:
        peers.status = None  # type: ignore[attr-defined]
        peers.leave = lambda status: setattr(peers, "status", status)
        return peers.__enter__()

    def ends(self, *ranks: int) -> list[int]:
        """Exit statuses of ranks, as soon as all of them have ended."""
        wait_for(lambda: all(self.status(rank) is not None for rank in ranks))
        return [self.status(rank) or 0 for rank in ranks]

    def status(self, rank: int) -> int | None:
        """Exit status of a rank; None: it has not ended."""
        return self.ranks[rank].status  # type: ignore[attr-defined]

    def vanish(self, rank: int) -> None:
        """Close the line of a rank without a word, as the system does with a killed process."""
        peers = self.ranks[rank]
        peers._closed.set()
        peers._thread.join()
        peers._close()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """Function that starts ranks."""
    made: list[Start] = []

    def make(world: int, **config: float) -> Start:
        made.append(Start(tmp_path, world, **config))
        return made[-1]

    yield make
    for one in made:
        for peers in reversed(one.ranks):
            with contextlib.suppress(OSError):
                peers.__exit__(None, None, None)


def first(start: Start) -> Failure:
    """Failure that was written down."""
    found = start.failures.first()
    assert found is not None
    return found


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_vanishes_ends_the_others(start: Callable[..., Start], rank: int) -> None:
    ranks = start(3)
    ranks.vanish(rank)
    assert ranks.ends(*({0, 1, 2} - {rank})) == [1, 1]
    assert (first(ranks).kind, first(ranks).rank) == ("lost", rank) and not first(ranks).final
    assert f"rank {rank} ended without a word" in first(ranks).message


@pytest.mark.parametrize("rank", [0, 2])
def test_what_a_rank_says_ends_the_others_and_goes_before_what_they_see(start: Callable[..., Start], rank: int) -> None:
    """With its exit status; the rank itself is left to its main thread."""
    ranks = start(3)
    said = Failure(kind="user", message="the learning rate is negative", rank=rank)
    ranks.ranks[rank].failed(said)
    ranks.vanish(rank)
    assert ranks.ends(*({0, 1, 2} - {rank})) == [2, 2] and ranks.status(rank) is None
    assert first(ranks) == said


def test_a_rank_that_lost_another_waits_for_the_cause(start: Callable[..., Start]) -> None:
    """It may be faster than the cause, and still it covers none."""
    ranks = start(4)
    lost = Failure(kind="peer", message="rank 2 lost the other ranks (Connection closed by peer)", rank=2)
    ranks.failures.claim(lost)
    reporting = threading.Thread(target=ranks.ranks[2].failed, args=(lost,))
    reporting.start()
    ranks.vanish(3)
    assert ranks.ends(0, 1, 2) == [1, 1, 1]
    reporting.join()
    assert (first(ranks).kind, first(ranks).rank) == ("lost", 3)


@pytest.mark.parametrize("reporting", [0, 2])
def test_of_those_that_wait_in_vain_none_is_named(start: Callable[..., Start], reporting: int) -> None:
    """A collective ran into its timeout in a rank that waited; rank 1 is where it should not be."""
    ranks = start(3)
    for number, port in enumerate(ranks.ports):
        port.progress.note("waited for the data of step 7")
        if number != 1:
            port.progress.note("worked on step 7")
    wait_for(lambda: [sign.count for sign in ranks.hub.roster.signs.values()] == [2, 1, 2])
    ranks.ranks[reporting].failed(Failure(kind="peer", message="Timed out waiting", rank=reporting))
    ranks.ends(0, 1, 2)
    assert first(ranks).rank == 1 and first(ranks).kind == "lost"
    assert "rank 1 has waited for the data of step 7 for" in first(ranks).message


def test_without_any_cause_the_lost_rank_says_what_it_knows(start: Callable[..., Start]) -> None:
    ranks = start(2)
    said = Failure(kind="peer", message="rank 1 lost the other ranks (gloo)", rank=1)
    ranks.ranks[1].failed(said)
    ranks.ends(0, 1)
    assert first(ranks) == said


def test_a_main_thread_that_stands_still_is_named_though_its_rank_beats(start: Callable[..., Start]) -> None:
    ranks = start(3, timeout_s=1.5)
    for port in (ranks.ports[0], ranks.ports[2]):
        port.progress.note("worked on step 1")
        port.progress.note("waited for the data of step 2")
    ranks.ports[1].progress.note("worked on step 1")
    ranks.ends(0, 1, 2)
    assert first(ranks).rank == 1 and "has worked on step 1 for" in first(ranks).message


def test_a_rank_that_waits_for_nobody_may_take_its_time(start: Callable[..., Start]) -> None:
    """Between two steps it may write, export or validate."""
    ranks = start(2, timeout_s=0.2)
    ranks.ports[0].progress.note("worked on step 1")
    ranks.ports[0].progress.note(None)
    ranks.ports[1].progress.note("worked on step 1")
    ranks.ports[1].progress.note(None)
    ranks.ports[0].progress.note("waited for the data of step 2")
    wait_for(lambda: [sign.count for sign in ranks.hub.roster.signs.values()] == [3, 2])
    time.sleep(1.0)
    assert ranks.failures.first() is None and ranks.status(0) is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_ranks_that_say_goodbye_end_nobody(start: Callable[..., Start], order: tuple[int, ...]) -> None:
    ranks = start(3)
    for rank in order:
        ranks.ranks[rank].__exit__(None, None, None)
        time.sleep(0.3)
    assert ranks.failures.first() is None
    assert [ranks.status(rank) for rank in order] == [None] * 3


def test_those_that_are_left_still_watch_over_each_other(start: Callable[..., Start]) -> None:
    ranks = start(3)
    ranks.ranks[1].__exit__(None, None, None)
    ranks.vanish(2)
    assert ranks.ends(0) == [1]
    assert first(ranks).rank == 2 and ranks.status(1) is None


def test_a_rank_that_does_not_come_to_its_end_is_ended(
    start: Callable[..., Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has open may wait for ever, a destructor of a process group for example."""
    monkeypatch.setattr("train.launch.peers._LEAVE_S", 0.5)
    ranks = start(2)
    ranks.ranks[1].failed(Failure(kind="fault", message="a mistake", rank=1))
    assert ranks.ends(0, 1) == [1, 1]


# --- strangers --------------------------------------------------------------------------------------------------------


def test_who_does_not_know_the_secret_is_no_rank(start: Callable[..., Start]) -> None:
    ranks = start(2)
    with pytest.raises(StrangerError):
        Member(ranks.ports[1], ranks.failures, ranks.config, address=("127.0.0.1", ranks.hub.number), key=b"x" * 32)
    assert ranks.failures.first() is None
    ranks.vanish(1)  # the true one is still watched over
    assert ranks.ends(0) == [1]


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x00" * 10_000,
        b"[" * 3000 + b"\n",
        b"{}\n[]\n7\n",
        b'{"rank": "x"}\n',
        json.dumps({"failure": {"kind": "user", "message": "end!"}}).encode() + b"\n",
        json.dumps({"rank": 1, "nonce": "0", "proof": "é", "host": "elsewhere"}).encode() + b"\n",
    ],
)
def test_what_strangers_say_changes_nothing(start: Callable[..., Start], said: bytes) -> None:
    ranks = start(2)
    with socket.create_connection(("127.0.0.1", ranks.hub.number)) as stranger:
        stranger.sendall(said)
        stranger.settimeout(30)
        end = time.monotonic() + 30
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):  # until it is thrown out
                assert time.monotonic() < end, "a stranger is taken for a rank"
    beats = ranks.hub.roster.signs[1].seen
    wait_for(lambda: ranks.hub.roster.signs[1].seen > beats)
    assert ranks.failures.first() is None and ranks.status(0) is None


def test_rank_zero_is_asked_for_the_secret_too(start: Callable[..., Start]) -> None:
    """Whoever took its port would learn nothing, and be no rank 0."""
    ranks = start(2)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(b'{"nonce": "00"}\n')
        connection.recv(4096)
        connection.sendall(b'{"proof": "00"}\n')
        connection.recv(1)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        place: Any = listener.getsockname()
        with pytest.raises(StrangerError, match="something else than rank 0"):
            Member(ranks.ports[1], ranks.failures, ranks.config, address=place, key=KEY)
        thread.join(1)


def test_a_rank_zero_that_is_not_reached_is_one_line(start: Callable[..., Start]) -> None:
    ranks = start(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    with pytest.raises(OSError, match=f"rank 1 on .* cannot reach rank 0 at 127.0.0.1:{number}"):
        Member(ranks.ports[1], ranks.failures, ranks.config, address=("127.0.0.1", number), key=KEY)
