"""Records what a program asks of the disk, in order: which files are flushed, and which names are given.

A power cut keeps what was flushed: a file's content, and a folder's list of names. So a result survives one only if its
content is flushed before it gets its name, and the folder that holds the name afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_Event = tuple[str, tuple[int, int], int]


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


@dataclass
class DiskLog:
    """Flushes and namings in the order in which they happened."""

    events: list[_Event] = field(default_factory=list)
    """`flushed` or `named`, the file's device and number, its size at that moment."""

    @classmethod
    def watching(cls, monkeypatch: pytest.MonkeyPatch) -> DiskLog:
        """A log of this process's calls from now on, until the test ends."""
        log = cls()
        fsync = os.fsync

        def flushed(descriptor: Any) -> None:
            fsync(descriptor)
            facts = os.fstat(descriptor)
            log.events.append(("flushed", _identity(facts), facts.st_size))

        monkeypatch.setattr(os, "fsync", flushed)
        for call in ("rename", "replace", "link"):
            monkeypatch.setattr(os, call, log._naming(getattr(os, call)))
        return log

    def _naming(self, call: Any) -> Any:
        def named(source: Any, target: Any, **places: Any) -> None:
            call(source, target, **places)
            facts = os.stat(target, dir_fd=places.get("dst_dir_fd"), follow_symlinks=False)
            self.events.append(("named", _identity(facts), facts.st_size))

        return named

    def survives_a_power_cut(self, path: Path) -> bool:
        """Whether a file or folder was flushed whole before it got its name, and the folder above it afterwards."""
        facts = path.lstat()
        whole = ("flushed", _identity(facts), facts.st_size)
        named = ("named", _identity(facts), facts.st_size)
        above = _identity(path.parent.lstat())
        if whole not in self.events or named not in self.events:
            return False
        last_name = len(self.events) - 1 - self.events[::-1].index(named)
        return self.events.index(whole) < last_name and any(
            event == "flushed" and file == above for event, file, _ in self.events[last_name:]
        )

    def flushed(self, path: Path) -> bool:
        """Whether a file's or folder's present content was flushed."""
        facts = path.lstat()
        return ("flushed", _identity(facts), facts.st_size) in self.events
