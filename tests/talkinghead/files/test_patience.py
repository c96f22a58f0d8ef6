"""Waiting for stores and file servers, on a clock that the tests move."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from talkinghead.files import patience
from talkinghead.files.patience import LOCAL_S, LONGEST_S, RETRIES, Clock, Tries, read_locally, store_patience


class Time:
    """Time that passes only in waiting, and in what costs time."""

    def __init__(self, drawn: float = 0.5) -> None:
        self.seconds, self.slept = 1000.0, []
        self.clock = Clock(now=lambda: self.seconds, sleep=self.sleep, draw=lambda: drawn)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture(autouse=True)
def nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_TOLD", {})
    RETRIES.take()


def failing_for(time: Time, seconds: float, error: Callable[[], Exception]) -> Callable[[], bytes]:
    """A request that fails for so many seconds, and counts its calls."""
    end = time.seconds + seconds

    def request() -> bytes:
        request.calls += 1  # type: ignore[attr-defined]
        if time.seconds < end:
            raise error()
        return b"there"

    request.calls = 0  # type: ignore[attr-defined]
    return request


def outage(time: Time, seconds: float, patience_s: float) -> tuple[bool, Tries]:
    """Whether a request outlasts an outage, and its tries."""
    tries, end = Tries("store", time.clock), time.seconds + seconds
    while time.seconds < end:
        if not tries.again(patience_s, "503"):
            return False, tries
    tries.succeeded()
    return True, tries


def test_a_minute_costs_a_dozen_requests() -> None:
    time = Time()
    done, tries = outage(time, 60, 300)
    assert done and tries.number + 1 == 13
    assert time.slept[:5] == [0.25, 0.5, 1, 2, 4] and max(time.slept) == LONGEST_S / 2
    assert RETRIES.take() == (12, sum(time.slept)) and RETRIES.take() == (0, 0.0)


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_waiting_is_drawn_between_nothing_and_twice_the_last(drawn: float) -> None:
    time = Time(drawn)
    tries = Tries("store", time.clock)
    for _ in range(8):
        assert tries.again(1e9, "503")
    assert time.slept == [drawn * min(LONGEST_S, 0.5 * 2**number) for number in range(8)]


def test_it_ends_when_the_patience_is_over() -> None:
    time = Time()
    done, tries = outage(time, 1000, 300)
    assert not done
    assert time.seconds == 1300 and tries.seconds == 300  # the last try is made at the very end
    assert tries.summary == f" (tried {tries.number} times in 300 s)"
    time = Time()
    done, tries = outage(time, 1, 0)
    assert not done and not time.slept and tries.summary == ""


def test_one_warning_when_it_begins_then_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    with caplog.at_level(logging.WARNING):
        outage(time, 100, 300)
        texts = [record.message for record in caplog.records]
    assert texts[0] == "store: 503; trying again, for up to 300 s"
    assert 3 <= len(texts[1:-1]) <= 4 and all("going on" in text for text in texts[1:-1])
    assert "store answers again, after" in texts[-1] and "tries" in texts[-1]
    caplog.clear()
    outage(time, 2, 300)
    assert not caplog.records  # within half a minute after the last one


def test_whoever_waits_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[int] = []
    monkeypatch.setattr(RETRIES, "listener", lambda: signs.append(1))
    outage(Time(), 10, 300)
    assert len(signs) == RETRIES.take()[0] > 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_server_that_fails_over_is_read_again(number: int, tmp_path: Path) -> None:
    time = Time()
    request = failing_for(time, LOCAL_S - 1, lambda: OSError(number, "it fails over"))
    assert read_locally(tmp_path / "file", request, time.clock) == b"there"
    assert 4 < request.calls < 10  # type: ignore[attr-defined]
    gone = failing_for(Time(), LOCAL_S + 100, lambda: OSError(number, "it is gone"))
    time = Time()
    with pytest.raises(OSError, match="it is gone") as caught:
        read_locally(tmp_path / "file", gone, time.clock)
    assert caught.value.filename == str(tmp_path / "file") and sum(time.slept) == LOCAL_S


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EMFILE])
def test_other_errors_are_no_matter_of_patience(number: int, tmp_path: Path) -> None:
    time = Time()
    request = failing_for(time, 1, lambda: OSError(number, "no"))
    with pytest.raises(OSError, match="no"):
        read_locally(tmp_path / "file", request, time.clock)
    assert request.calls == 1 and not time.slept  # type: ignore[attr-defined]


def test_the_environment_may_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.STORE_PATIENCE, raising=False)
    assert store_patience() == 300
    monkeypatch.setenv(patience.STORE_PATIENCE, "0")
    assert store_patience() == 0
    for wrong in ("-1", "long", "inf", "nan"):
        monkeypatch.setenv(patience.STORE_PATIENCE, wrong)
        with pytest.raises(ValueError, match=r"TALKINGHEAD_STORE_PATIENCE_S is .* at least 0"):
            store_patience()
