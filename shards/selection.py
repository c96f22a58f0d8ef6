"""Choice of samples by what is known of them: scores, licence, person, labels. Readers and recipes share it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from shards.index import Index
from shards.joined import JoinedVersions, listed
from talkinghead.config import shown
from talkinghead.schema import check_name

log = logging.getLogger(__name__)

LeftOut = list[tuple[str, int]]
"""What was wrong with samples, in words → number of samples that were left out for it, in the order of the rules."""

_MOST_SHOWN = 5  # values of a rule in its words

# --- the rules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rules that samples must fulfil, all of them; the default takes every sample."""

    at_least: Mapping[str, float] = field(default_factory=dict)
    """Score → smallest value; samples below it, or without the score, are left out. Names are `score`, or
    `column.score` where several columns have it; of a column that is not joined, the newest version is."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Score → largest value; samples above it, or without the score, are left out."""
    licence: tuple[str, ...] = ()
    """Licences whose samples are taken; empty: all."""
    person: tuple[str, ...] = ()
    """Persons (or split groups, where the data set names no persons) whose samples are taken; empty: all."""
    split_group: tuple[str, ...] = ()
    """Split groups whose samples are taken; empty: all."""
    label: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Label → values of which a sample must have one. Names are like those of scores."""

    def __post_init__(self) -> None:
        for name, bound in (*self.at_least.items(), *self.at_most.items()):
            _check_fact(name, "score")
            if not math.isfinite(bound):
                raise ValueError(f"the bound of {name} is {bound}")
        for name, values in self.label.items():
            _check_fact(name, "label")
            if not values:
                raise ValueError(f"no value of the label {name} is wanted")

    def arguments(self) -> dict[str, Any]:
        """Arguments of `ShardReader`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _check_fact(name: str, what: Literal["score", "label"]) -> None:
    """Raise `ValueError` unless it is the name of a score or label, or one with its column."""
    column, dot, plain = name.rpartition(".")
    check_name(plain, what)
    if dot:
        check_name(column, f"column of the {what} {plain}")


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


# --- applying them ----------------------------------------------------------------------------------------------------


def select(
    versions: JoinedVersions, selection: Selection, columns: Sequence[str], chosen: np.ndarray
) -> tuple[np.ndarray, LeftOut]:
    """Samples that have all columns and fulfil all rules; each rule's share is logged.

    Args:
        versions: The versions that are read. Further ones are joined where only they have a score or label.
        selection: The rules.
        columns: Arrays that a sample must have.
        chosen: Rows from which to choose, `[rows]` bool.

    Returns:
        Rows that are left, `[rows]` bool; and what each rule left out, of what the rules before it had left.

    Raises:
        ValueError: There is no such column, score, licence, person, group, label or value.
    """
    left_out: LeftOut = []
    for words, fitting in _rules(versions, selection, columns):
        before = int(np.count_nonzero(chosen))
        chosen = chosen & fitting
        count = before - int(np.count_nonzero(chosen))
        left_out.append((words, count))
        if count:
            log.warning("%d of %d samples are left out: %s", count, before, words)
    return chosen, left_out


def _rules(versions: JoinedVersions, selection: Selection, columns: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """What is wrong with a sample that a rule leaves out, in words, and the rows that fulfil it, `[rows]` bool."""
    for column in columns:
        yield f"no {column}", versions.holder(f"{column}.npy").index.has_member(f"{column}.npy")
    for score, least in selection.at_least.items():
        opened, name = versions.find("score", score, open_more=True)
        yield f"{score} below {least:g}, or not measured", opened.score(name) >= least  # false for NaN
    for score, most in selection.at_most.items():
        opened, name = versions.find("score", score, open_more=True)
        yield f"{score} above {most:g}, or not measured", opened.score(name) <= most
    index, data = versions.first.index, versions.storage.uri
    if selection.licence:
        yield _other("licence", selection.licence), _of_values(index, "licence", selection.licence, data)
    if selection.person:
        yield _other("person", selection.person), _of_persons(index, selection.person, data)
    if selection.split_group:
        yield (
            _other("split group", selection.split_group),
            _of_values(index, "split_group", selection.split_group, data),
        )
    for label, values in selection.label.items():
        yield _other(f"label {label}", values), _labelled(versions, label, values)


def _other(what: str, values: Sequence[str]) -> str:
    """The words for samples that have none of the values."""
    more = f" and {len(values) - _MOST_SHOWN:,} more" if len(values) > _MOST_SHOWN else ""
    return f"{what} other than {', '.join(values[:_MOST_SHOWN])}{more}"


def _of_values(index: Index, column: str, values: Sequence[str], data: str) -> np.ndarray:
    fitting = index.equals(column, *values)
    if unknown := set(values) - set(index.distinct(column, fitting)):
        what, there = column.replace("_", " "), listed(index.distinct(column))
        raise ValueError(f"no sample in {data} has the {what} {shown(min(unknown))}, only {there}")
    return fitting


def _of_persons(index: Index, persons: Sequence[str], data: str) -> np.ndarray:
    """Rows of these persons, or of these split groups where the data set names no person."""
    nameless = index.is_absent("person")
    fitting = index.equals("person", *persons) | (nameless & index.equals("split_group", *persons))
    known = {*index.distinct("person", fitting), *index.distinct("split_group", fitting & nameless)}
    if unknown := set(persons) - known:
        there = listed([*index.distinct("person"), *index.distinct("split_group", nameless)])
        raise ValueError(f"no sample in {data} belongs to person or split group {min(unknown)!r}, only to {there}")
    return fitting


def _labelled(versions: JoinedVersions, label: str, values: Sequence[str]) -> np.ndarray:
    opened, name = versions.find("label", label, open_more=True)
    there = opened.label_values(name)
    if unknown := set(values) - set(there):
        raise ValueError(
            f"no sample of {opened.entry.version} has the label {label}={min(unknown)}, only {listed(there)}: labels"
            f" come from make derive COLUMNS={opened.column}"
        )
    return opened.has_label(name, values)
