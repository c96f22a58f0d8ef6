"""Requests to stop by signals."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from train.trainer.port import MEETING_VARIABLE, StopRequest


def test_the_first_signal_is_a_request_and_the_second_has_its_effect() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_in_a_rank_of_our_launcher_a_second_signal_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler signals it, and so does the launcher; that one kills it when it is to end at once."""
    monkeypatch.setenv(MEETING_VARIABLE, "/nowhere")
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.requested and stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stop.requested


def test_it_does_nothing_outside_the_main_thread() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
