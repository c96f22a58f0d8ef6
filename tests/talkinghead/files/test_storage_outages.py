"""Object stores that fail for a while, for good, and for a reason that waiting does not mend."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkinghead.files import patience, storage
from talkinghead.files.patience import RETRIES, STORE_PATIENCE
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import UnreachableError
from tests.support.object_store import LocalS3
from tests.support.store_faults import answering


@pytest.fixture
def place(s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setattr(patience, "_TOLD", {})
    found = Storage(s3.uri(tmp_path.name))
    found.write("a/there", b"0123456789")
    RETRIES.take()
    return found


class Outage:
    """Answers for the first seconds of its life."""

    def __init__(self, seconds: float, status: str = "503 Slow Down") -> None:
        self.seconds, self.status, self.requests, self.begun = seconds, status, 0, 0.0

    def __call__(self, request: object, application: object) -> str | None:
        self.begun = self.begun or time.monotonic()
        if time.monotonic() - self.begun > self.seconds:
            return None
        self.requests += 1
        return self.status


def test_everything_outlasts_an_outage(place: Storage, s3: LocalS3, tmp_path: Path) -> None:
    def moved(path: str) -> bytes:
        with place.local_copy(path) as copy:
            return copy.read_bytes()

    asks = {
        "read": lambda: place.read("a/there") == b"0123456789",
        "limited": lambda: place.read("a/there", 10) == b"0123456789",
        "range": lambda: place.read_range("a/there", 2, 3) == b"234",
        "size": lambda: place.size("a/there") == 10,
        "list": lambda: [file.path for file in place.list("a")] == ["a/there"],
        "copy": lambda: moved("a/there") == b"0123456789",
        "write": lambda: place.write("b/new", b"new") is None and place.read("b/new") == b"new",
        "delete": lambda: place.delete("b/new") is None and place.size("b/new") is None,
    }
    for name, ask in asks.items():
        fault = Outage(0.4)
        with answering(s3, fault):
            assert ask(), name
        assert fault.requests >= 1, name
        number, seconds = RETRIES.take()
        assert number == fault.requests and seconds > 0, name
    assert fault.requests < 12


def test_a_server_that_is_away_is_waited_for(place: Storage, s3: LocalS3) -> None:
    """Also by a copy in another process: that the store has answered once goes along."""
    place.read("a/there")
    copy: Storage = pickle.loads(pickle.dumps(place))  # noqa: S301  our own bytes
    s3.stop()
    back = threading.Timer(2.0, s3.start)
    back.start()
    try:
        assert copy._answered and copy.read("a/there") == b"0123456789"
    finally:
        back.join()
    assert RETRIES.take()[0] >= 2


def test_patience_ends_in_one_line(place: Storage, s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_PATIENCE, "1")
    with answering(s3, Outage(600)), pytest.raises(UnreachableError, match=r"(?s)cannot reach s3://.*tried \d+ times"):
        place.read("a/there")
    monkeypatch.setenv(STORE_PATIENCE, "0")
    fault = Outage(600)
    with answering(s3, fault), pytest.raises(UnreachableError, match="503") as caught:
        place.read("a/there")
    assert fault.requests == 1 and "tried" not in str(caught.value)


@pytest.mark.parametrize("status", ["403 Access Denied", "401 Unauthorized", "400 Expired Token"])
def test_what_waiting_does_not_mend_is_said_at_once(place: Storage, s3: LocalS3, status: str) -> None:
    fault = Outage(600, status)
    with answering(s3, fault), pytest.raises(UnreachableError):
        place.read("a/there")
    assert fault.requests == 1 and RETRIES.take() == (0, 0.0)
    fault = Outage(600, status)
    with answering(s3, fault), pytest.raises(UnreachableError, match="cannot reach s3://"):
        place.read_range("a/there", 2, 3)
    assert fault.requests == 1 and RETRIES.take() == (0, 0.0)


def test_a_missing_file_is_not_waited_for(place: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        place.read("a/gone")
    with pytest.raises(FileNotFoundError):
        place.read_range("a/gone", 0, 4)
    for offset in (8, 10, 100):
        with pytest.raises(EOFError):
            place.read_range("a/there", offset, 4)
    assert place.size("a/gone") is None
    assert RETRIES.take() == (0, 0.0)


def test_a_place_that_never_answered_may_be_a_wrong_address(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_STRANGER_S", 0.5)
    nowhere = Storage(s3.uri("folder").replace(f":{s3.port}", ":1"))
    with pytest.raises(UnreachableError, match="tried"):
        nowhere.read("file")
