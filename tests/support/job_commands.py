"""Commands of the data side as a user runs them, and the hashes of what they write."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TWO_SHARDS = ("--workers", "2", "--shards", "min_shards=2")


Command = Callable[..., subprocess.CompletedProcess[str]]


def run_command(*arguments: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m <arguments>` from the repository root."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ.copy(),
        timeout=280,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if check and done.returncode != 0:
        pytest.fail(f"{arguments} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done


def digests(data: Path, pattern: str = "*.tar") -> dict[str, str]:
    """File name → sha256 of the tars that training reads."""
    tars = [*data.glob(f"clips-{pattern}"), *data.glob(f"ann/*/{pattern}")]
    return {tar.relative_to(data).as_posix(): hashlib.sha256(tar.read_bytes()).hexdigest() for tar in sorted(tars)}
