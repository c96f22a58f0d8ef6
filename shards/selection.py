"""Choice of samples by what is known of them: scores, licence, person, labels. Readers and recipes share it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from talkinghead.schema import check_name


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rules that samples must fulfil, all of them; the default takes every sample."""

    at_least: Mapping[str, float] = field(default_factory=dict)
    """Score → smallest value; samples below it, or without the score, are left out."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Score → largest value; samples above it, or without the score, are left out."""
    licence: tuple[str, ...] = ()
    """Licences whose samples are taken; empty: all."""
    person: tuple[str, ...] = ()
    """Persons (or split groups, where the data set names no persons) whose samples are taken; empty: all."""
    split_group: tuple[str, ...] = ()
    """Split groups whose samples are taken; empty: all."""
    label: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Label → values of which a sample must have one."""

    def __post_init__(self) -> None:
        for name, bound in (*self.at_least.items(), *self.at_most.items()):
            check_name(name, "score")
            if not math.isfinite(bound):
                raise ValueError(f"the bound of {name} is {bound}")

    def arguments(self) -> dict[str, Any]:
        """Arguments of `ShardReader`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def bounds(texts: Iterable[str], option: str) -> dict[str, float]:
    """Bounds of scores from NAME=VALUE texts; raises `ValueError`, which names the option."""
    found: dict[str, float] = {}
    for name, value in _pairs(texts, option):
        try:
            bound = float(value)
        except ValueError:
            raise ValueError(f"{option} {name}={value}: {value!r} is no number") from None
        if name in found or not math.isfinite(bound):
            raise ValueError(f"{option} {name}={value}: name each score once, with a finite number")
        found[name] = bound
    return found


def values(texts: Iterable[str], option: str) -> dict[str, tuple[str, ...]]:
    """Values of labels from NAME=VALUE texts, several of one name allowed; raises `ValueError` like `bounds`."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in _pairs(texts, option):
        found[name] = (*found.get(name, ()), value)
    return found


def _pairs(texts: Iterable[str], option: str) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ValueError(f"{option} {text!r}: write NAME=VALUE")
        yield name, value
