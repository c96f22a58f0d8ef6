"""Split groups and persons of a plain folder, out of the paths of its files (trees such as `id/video/clip.mp4`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from ingest.adapters.row_checks import LONGEST_NAME
from ingest.source_listing import display_path
from talkinghead.schema import CatalogRow, path_key

NO_GROUPS = "none"
"""The rule by which each file is a group of its own."""
_FORMS = "parent, level:1 (the first folder below SOURCE, and so on), regex:PATTERN, or none"


def path_groups(rule: str) -> Callable[[str], str | None]:
    """Function from a path in SOURCE to the name of its group; None where the path has none.

    Args:
        rule: `parent`: the folder that the file lies in, with the folders above it. `level:N`: the name of the N-th
            folder below SOURCE, from 1. `regex:PATTERN`: what the pattern's first group finds in the path, or all that
            it finds where it has no group. `none`: no path has a group.

    Raises:
        ValueError: There is no such rule.
    """
    kind, _, value = rule.partition(":")
    if rule == NO_GROUPS:
        return lambda path: None
    if rule == "parent":
        return lambda path: path.rpartition("/")[0] or None
    if kind == "level" and re.fullmatch(r"[1-9][0-9]{0,2}", value):
        level = int(value)

        def at_level(path: str) -> str | None:
            folders = path.split("/")[:-1]
            return folders[level - 1] if len(folders) >= level else None

        return at_level
    if kind == "regex" and value:
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise ValueError(f"--group-by {rule!r}: the pattern is wrong: {error}") from error

        def by_pattern(path: str) -> str | None:
            match = pattern.search(path)
            return (match[1] if pattern.groups else match[0]) or None if match else None

        return by_pattern
    raise ValueError(f"--group-by is {rule!r}, must be {_FORMS}")


def grouped(row: CatalogRow, group_of: Callable[[str], str | None]) -> CatalogRow:
    """The row with the split group and the person that its path tells; unchanged where it tells none."""
    group = group_of(row.source) if row.source is not None else None
    if group is None:
        return row
    name = display_path(group)
    name = name if len(name) <= LONGEST_NAME else path_key(group)
    return replace(row, split_group=name, person=name)
