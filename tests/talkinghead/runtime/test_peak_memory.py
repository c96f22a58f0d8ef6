"""The peak is that of the process itself, not of the one that started it."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

PROGRAM = "from talkinghead.runtime.peak_memory import peak_memory; {before}; print(peak_memory())"


def measured(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_what_is_freed_again_counts_and_what_the_parent_holds_does_not() -> None:
    held = bytearray(b"x" * 300_000_000)  # by this process, while it starts the others
    small, large = measured("pass"), measured("block = b'x' * 200_000_000; del block")
    assert small < 100_000_000 < len(held)
    assert 200_000_000 < large < 300_000_000
