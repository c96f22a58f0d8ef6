"""Commands with a small file system of their own, which only they see."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

import pytest

from tests.support.paths import ROOT

REFUSED = 77
"""Exit status by which a command reports that its `mount` was refused: `mount … || exit 77`."""


def run_with_mounts(
    commands: str, *, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run shell commands that may mount; skips the test where the system does not allow it.

    Args:
        commands: For `sh`, in the repository's root.
        env: Added to the environment.
        timeout: Seconds.
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", commands],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | dict(env or {}),
        timeout=timeout,
        check=False,
    )
    if done.returncode == REFUSED or done.stderr.startswith("unshare:"):
        pytest.skip("this system does not allow a mount in a user namespace")
    return done
