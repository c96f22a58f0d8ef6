"""Memory of `infer animate` does not grow with the speech: measured in processes of their own, by their peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.audio import encode_wav
from tests.support.paths import ROOT

MIB = 1 << 20


def peak(speech: Path, media: Path, weights: Path) -> float:
    """MiB at the peak of a process that draws the landmarks of a speech."""
    out = speech.with_suffix(".mp4")
    given = ["--reference", media / "image" / "AniPortrait_lyl.png", "--audio", speech, "--weights", weights]
    command = ["animate", "--renderer", "landmarks", "--width", "64", "--pose", "still", "--device", "cpu", "-o", out]
    subprocess.run(
        [sys.executable, "-m", "infer", *map(str, (*command, *given))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    return json.loads(out.with_suffix(".json").read_bytes())["peak_memory_bytes"]["host"] / MIB


@pytest.mark.slow
def test_ten_minutes_take_little_more_than_one(media: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """Nine minutes more are 33 MiB of samples, next to 300 of meshes and poses: it grows by less than the samples."""
    found = {}
    for minutes in (1, 10):
        tone = 0.3 * np.sin(np.arange(minutes * 60 * 16_000, dtype=np.float32) / 20)
        path = tmp_path / f"{minutes}.wav"
        path.write_bytes(encode_wav(tone))
        found[minutes] = peak(path, media, tiny_weights)
    assert found[10] - found[1] < 26, found
