"""A recording: in memory and on disk it gives the same bits, whole and in parts, and costs memory for a part alone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.models.speech.encoder import normalise
from talkinghead.models.speech.recording import Recording
from tests.support.paths import ROOT


def speech(count: int) -> np.ndarray:
    return (0.1 + np.random.default_rng(count).normal(size=count)).astype(np.float32)


@given(count=st.integers(1, 400), first=st.integers(0, 400), size=st.integers(0, 400), on_disk=st.booleans())
def test_any_part_is_that_of_the_whole(count: int, first: int, size: int, on_disk: bool) -> None:
    """Bit for bit: the samples, and their values normalised over the whole recording."""
    samples = speech(count)
    recording = Recording(samples, on_disk=on_disk)
    assert len(recording) == count
    np.testing.assert_array_equal(recording.samples(first, first + size), samples[first : first + size])
    np.testing.assert_array_equal(recording.samples(), samples)
    wanted = normalise(torch.from_numpy(samples))[first : first + size]
    assert torch.equal(recording.normalised(first, first + size), wanted)


def test_what_it_was_made_of_may_change() -> None:
    """What lies on disk is a copy; in memory it is the array itself, without one."""
    samples = speech(100)
    kept, held = Recording(samples, on_disk=True), Recording(samples)
    before = samples.copy()
    samples[:] = 0
    np.testing.assert_array_equal(kept.samples(), before)
    assert np.shares_memory(held.samples(), samples)


def test_refused() -> None:
    for samples, said in (
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((1, 5), np.float32), r"not an array \[1, 5\]"),
        (np.array([0, np.nan, 1], np.float32), "not finite"),
        (np.array([0, np.inf, 1], np.float32), "not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            Recording(samples)


def test_no_room_is_said_with_the_place(tmp_path: Path) -> None:
    """A process that may write 1 kB into a file: the line names the folder, and how to take another one."""
    code = (
        "import numpy as np; from talkinghead.models.speech.recording import Recording\n"
        "try: Recording(np.zeros(16000, np.float32), on_disk=True)\n"
        "except OSError as error: print(error.strerror)"
    )

    def little_room() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=little_room,
    )
    assert f"cannot write the speech to {tmp_path}: File too large; TMPDIR names another folder" in done.stdout
    assert not list(tmp_path.iterdir())
