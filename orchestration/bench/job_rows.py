"""Rows about whole commands: the time of a rerun with nothing to do, and the bytes that a re-annotation writes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from orchestration import ROOT
from orchestration.bench.row import Row


@dataclass(frozen=True)
class _Seen:
    """State of a file on the disk: a replaced file has a new inode or time."""

    inode: int
    time_ns: int
    """Time of the last change in nanoseconds."""
    size: int
    """Size in bytes."""


def run_command(*arguments: str) -> float:
    """Run `python -m orchestration …`; returns its wall time in seconds.

    Raises:
        ValueError: It failed; the message ends with its stderr.
    """
    # On a private Ray, even where the user has a cluster: the rows are about this machine.
    started = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestration", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"python -m orchestration {arguments[0]} failed: {done.stderr[-2000:].strip()}")
    return time.perf_counter() - started


def snapshot(folder: Path) -> dict[str, _Seen]:
    """Path → state of every file below a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            about = path.stat()
            found[str(path)] = _Seen(about.st_ino, about.st_mtime_ns, about.st_size)
    return found


def written_bytes(before: dict[str, _Seen], after: dict[str, _Seen]) -> int:
    """Size of the files that are new or were replaced, in bytes."""
    return sum(seen.size for path, seen in after.items() if before.get(path) != seen)


def job_rows(source: Path, data: Path) -> list[Row]:
    """Build a data set, repeat the same command, then re-annotate with the other engine.

    Args:
        source: Folder with videos.
        data: New folder, which holds the finished data set afterwards.
    """
    from annotate.engines import DEFAULT_ENGINE

    # Build, and build again: the second command finds everything done.
    build = ("shards", "--source", str(source), "--data", str(data), "--shards", "min_shards=2")
    first = run_command(*build)
    built = snapshot(data)
    again = run_command(*build)
    rerun = snapshot(data)
    # Annotate anew: with the other engine, or with other settings where this model has only one.
    other = "tasks" if DEFAULT_ENGINE == "litert" and _has_tasks() else "litert"
    options = ("--engine", other) if other != DEFAULT_ENGINE else ("--annotate", "detector_every=4")
    run_command("reannotate", "--data", str(data), "--version", "bench", *options)
    megabyte = 1 / 2**20
    return [
        Row(
            name="rerun",
            ours=again,
            baseline=first,
            unit="s",
            better="lower",
            goal=0.02,
            note="python -m orchestration shards on a finished data set, against its first run; whole processes, Ray's"
            f" and Python's start included; the rerun wrote {written_bytes(built, rerun)} bytes",
        ),
        Row(
            name="reannotate_bytes",
            ours=written_bytes(rerun, snapshot(data)) * megabyte,
            baseline=sum(seen.size for seen in built.values()) * megabyte,
            unit="MiB",
            better="lower",
            goal=0.6,
            note=f"files written by python -m orchestration reannotate ({' '.join(options)}), against all files of the"
            " first build (units, records, shards, index)",
        ),
    ]


def _has_tasks() -> bool:
    """Whether the face model has the bundle that MediaPipe Tasks opens."""
    from talkinghead.face.resolve import resolve_face_model

    return resolve_face_model().task_file is not None
