"""A part of the metadata, or of the source folder, that could not be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that gives no catalog row. It is listed with the catalog, never dropped silently."""

    file: str
    """Name of the metadata file, or path in SOURCE."""
    line: int | None = None
    """Line in it, counted from 1; None when the problem is not in one line."""
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"
