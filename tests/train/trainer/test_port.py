"""Requests to stop by signals and by the clock, and the progress that ranks show each other."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.trainer import port
from train.trainer.port import MEETING_VARIABLE, Deadline, Preempted, Progress, StopRequest, raise_preempted


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


def test_sigterm_repeated_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers signal the process and its group, or every second."""
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        with StopRequest() as stop:
            for _ in range(4):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested and not stop.requeue and ended == []
            # Later it is a request of its own.
            monkeypatch.setattr(port, "_ONCE_S", 0.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_notice_and_the_signal_that_it_announces_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM sends SIGUSR1, and SIGTERM when the time is over: the checkpoint may still be on its way."""
    monkeypatch.setattr(port, "_ONCE_S", 0.0)
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        with StopRequest() as stop:
            for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                assert stop.requested and stop.requeue and stop.number == signal.SIGUSR1 and ended == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_notice_before_the_first_step_is_no_death() -> None:
    before = signal.signal(signal.SIGUSR1, raise_preempted)
    try:
        with pytest.raises(Preempted, match="the same command continues"):
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- the clock --------------------------------------------------------------------------------------------------------


@given(st.floats(0, 100), st.floats(0, 1000), st.floats(10, 10_000))
def test_there_is_time_for_a_step_and_a_checkpoint(step_s: float, checkpoint_s: float, left_s: float) -> None:
    deadline = Deadline(time.time() + left_s)
    deadline.step_s = step_s
    needed = 3 * step_s + 2 * checkpoint_s
    if left_s < needed:
        assert deadline.due(checkpoint_s)
    if left_s > needed + 31:
        assert not deadline.due(checkpoint_s)
    # What a checkpoint takes is unknown at first: a tenth is kept for it, ten minutes at most.
    assert deadline.due(None) == (left_s - 3 * step_s - min(600, left_s / 10) - min(30, left_s / 20) <= 0.01)


def test_without_hours_it_is_never_due() -> None:
    assert not Deadline().due(1e9) and not Deadline().due(None)


def test_the_longest_step_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 103.0, 104.0, 109.0, 110.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    deadline = Deadline()
    found = []
    for _ in range(5):
        deadline.tick()
        found.append(deadline.step_s)
    assert found == [0.0, 3.0, 3.0, 5.0, 5.0]


def test_what_suspends_the_deadline_counts_to_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 101.0, 141.0, 142.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    deadline = Deadline()
    deadline.tick()
    with deadline.suspended():
        pass
    deadline.tick()
    assert deadline.step_s == 2.0


def test_what_is_ahead_counts_before_the_deadline() -> None:
    deadline = Deadline(time.time() + 1000)
    assert not deadline.due(0.0) and not deadline.due(0.0, ahead_s=900) and deadline.due(0.0, ahead_s=999)


def test_progress_counts_and_tells_what_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress()
    assert progress.read() == (0, None, 0.0)
    progress.note("waited for the data of step 1")
    now = 12.5
    assert progress.read() == (1, "waited for the data of step 1", 2.5)
