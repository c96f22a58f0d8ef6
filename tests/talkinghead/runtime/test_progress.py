"""Progress where no terminal is: a line now and then with the time left, and the seconds of each stage."""

from __future__ import annotations

import pytest

from talkinghead.runtime import progress as module
from talkinghead.runtime.progress import Progress, duration


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


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7000, "117 min"), (11100, "3 h 5 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
