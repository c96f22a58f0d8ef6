"""Progress with and without a terminal: lines with the time left, the bar, and the seconds of each stage."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios

import pytest

from talkinghead.runtime import progress as module
from talkinghead.runtime.progress import Progress, duration
from tests.support.terminals import everything_written


def test_lines_and_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Progress() as progress:
        for stage, frames in (("first", 50), ("second", 3)):
            progress(stage, 0, frames)
            for done in range(1, frames + 1):
                clock[0] += 1.0
                progress(stage, done, frames)
    assert progress.seconds == {"first": 50.0, "second": 3.0}
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"first: {done}/50, about {50 - done} s left" for done in (2, 12, 22, 32, 42)] + [
        "second: 2/3, about 1 s left"
    ]


def test_work_that_an_earlier_run_has_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps done before do not count in the time left; the speed in frames follows the count of steps."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Progress() as progress:
        progress("annotate", 80, 100)
        for done in range(81, 101):
            clock[0] += 10.0
            progress("annotate", done, 100, frames=(done - 80) * 250)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "annotate: 81/100, 250 frames, 25 frames/s, about 3 min left"
    assert lines[-1] == "annotate: 99/100, 4,750 frames, 25 frames/s, about 10 s left" and len(lines) == 19


def test_a_step_that_takes_hours_shows_movement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one step alone its frames are shown, and the time left follows the share of the work that is done."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Progress() as progress:
        progress("ingest", 2, 3, share=0.1)
        progress("ingest", 2, 3, share=0.1)
        for number in range(1, 10):
            clock[0] += 600.0
            progress("ingest", 2, 3, frames=number * 30_000, share=0.1 + 0.09 * number)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ingest: 2/3, 30,000 frames, 50 frames/s, about 90 min left"
    assert lines[-1] == "ingest: 2/3, 270,000 frames, 50 frames/s, about 10 min left" and len(lines) == 9


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar on a real terminal shows the stage, the count, the speed and the time left."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress() as progress:
            progress("annotate", 0, 10)
            progress("annotate", 7, 10, frames=100)
    shown = everything_written(master)
    assert "annotate" in shown and "7/10, 100 frames" in shown and "frames/s" in shown and "left" in shown


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7000, "117 min"), (11100, "3 h 5 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
