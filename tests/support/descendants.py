"""Processes below a process, as /proc tells them."""

from __future__ import annotations

import os
from pathlib import Path


def descendants(parent: int | None = None) -> list[tuple[int, int]]:
    """Number and depth (1: child) of all processes below one; None: below this one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[tuple[int, int]] = []

    def add(number: int, depth: int) -> None:
        for child in children.get(number, []):
            found.append((child, depth))
            add(child, depth + 1)

    add(os.getpid() if parent is None else parent, 1)
    return found


def readers_of(parent: int | None = None) -> list[int]:
    """Numbers of the reading processes of a training: the forks of its reading server."""
    return [number for number, _ in descendants(parent) if _reads(number) and _reads(_parent(number))]


def reading_servers_of(parent: int | None = None) -> list[int]:
    """Numbers of the processes whose forks read; they have the same program, and another program has started them."""
    return [number for number, _ in descendants(parent) if _reads(number) and not _reads(_parent(number))]


def _reads(number: int) -> bool:
    try:
        return b"from shards.reading_processes import serve" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def _parent(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def alive(number: int) -> bool:
    """Whether a process runs, or is stopped; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
