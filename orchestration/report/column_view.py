"""Derived columns as the page shows them: a choice of their numbers, bounded, with charts and examples of failures."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestration.report.distributions import Chart, chart
from orchestration.report.state import ColumnState, DataState
from shards.index import Index
from shards.index_format import SCORE
from talkinghead.provenance import canonical_json

# Most of each on the page, whose size must not grow with the data set; `report.json` has more.
MOST_VERSIONS = 20
MOST_FITS = 60
MOST_CHARTS = 12
MOST_FACTS = 40
MOST_LABELS = 16
MOST_VALUES = 12
MOST_CAUSES = 12
MOST_EXAMPLES = 3
TEXT_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class LabelView:
    """The most frequent values of one label."""

    name: str
    values: list[tuple[str, int]]
    """Value and number of samples."""
    others: int
    """Number of further values."""
    other_samples: int
    """Samples that have one of these."""


@dataclass(frozen=True, kw_only=True)
class FailureView:
    """Samples whose column could not be made, for one cause."""

    cause: str
    total: int
    examples: list[tuple[str, str]]
    """Key and message of some."""


@dataclass(frozen=True, kw_only=True)
class ColumnView:
    """One version of a derived column."""

    numbers: Mapping[str, Any]
    """Its entry in `report.json`."""
    failed: int
    """Number of samples that could not be made."""
    derive: str
    """Command that goes on with it."""
    facts: list[tuple[str, str, str]]
    """What it was made of: kind of fact, name, value."""
    more_facts: int
    """Number of facts that are not shown."""
    charts: list[tuple[Chart, Mapping[str, float]]]
    """Histogram and numbers of each score."""
    labels: list[LabelView]
    failures: list[FailureView]


def column_views(state: DataState, numbers: Sequence[Mapping[str, Any]], data_uri: str) -> list[ColumnView]:
    """Versions of derived columns for the page.

    Args:
        state: State of the data set.
        numbers: `columns` of `report.json`.
        data_uri: DATA as the user names it, for commands.
    """
    keep = np.array([row.keep for row in state.index], bool)
    pairs = list(zip(state.columns, numbers, strict=True))[:MOST_VERSIONS]
    return [_view(column, about, keep, data_uri) for column, about in pairs]


def fact_text(value: Any) -> str:
    """A setting, or several, for people: JSON without the outer braces and quotes, cut where it is long."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {fact_text(item)}" for name, item in value.items() if item not in ({}, [], None))
    else:
        text = value if isinstance(value, str) else canonical_json(value).decode()
    return _cut(text)


def _view(column: ColumnState, about: Mapping[str, Any], keep: np.ndarray, data_uri: str) -> ColumnView:
    facts = list(_facts(about))
    return ColumnView(
        numbers=about,
        failed=sum(about["failures"].values()),
        derive=f"make derive COLUMNS={shlex.quote(about['column'])} DATA={shlex.quote(data_uri)}",
        facts=facts[:MOST_FACTS],
        more_facts=len(facts[MOST_FACTS:]),
        charts=list(_charts(column.index, about["scores"], keep)) if column.index else [],
        labels=[
            LabelView(
                name=name,
                values=[(value, count) for value, count in label["values"].items()][:MOST_VALUES],
                others=label["other_values"] + len(label["values"]) - min(len(label["values"]), MOST_VALUES),
                other_samples=label["samples"] - sum(list(label["values"].values())[:MOST_VALUES]),
            )
            for name, label in list(about["labels"].items())[:MOST_LABELS]
        ],
        failures=list(_failures(column, about["failures"])),
    )


def _facts(about: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a version was made of; an entry that is too large for its numbers is a text there."""
    yield "code", "version", str(about["column_version"])
    for what, field in (("setting", "parameters"), ("file", "provenance"), ("version read", "pins"), ("fit", "fits")):
        if isinstance(about[field], str):
            yield what, "", _cut(about[field])
            continue
        for name, value in about[field].items():
            # Of a file its name and hash, which may be of any kind in a stranger's DATA.
            texts = (value["name"], value["sha256"]) if field == "provenance" else (value,)
            yield what, _cut(name), " ".join(fact_text(text) for text in texts if text is not None)


def _charts(
    index: Index, scores: Mapping[str, Mapping[str, float]], keep: np.ndarray
) -> Iterator[tuple[Chart, Mapping[str, float]]]:
    """Histograms of the samples that have the column, kept by the annotation's filters or not."""
    there = index.numbers("keep")
    # Where the index is about other samples, which is listed as an error, nothing is known of the filters.
    kept = keep if len(keep) == len(there) else there
    for name, about in list(scores.items())[:MOST_CHARTS]:
        if drawn := chart(name, "", index.numbers(f"{SCORE}{name}")[there], kept[there]):
            yield drawn, about


def _failures(column: ColumnState, causes: Mapping[str, int]) -> Iterator[FailureView]:
    for cause, total in list(causes.items())[:MOST_CAUSES]:
        records = [record for record in column.quarantined if record.cause == cause][:MOST_EXAMPLES]
        examples = [(record.key, _cut(record.attempts[-1].message)) for record in records]
        yield FailureView(cause=_cut(cause), total=total, examples=examples)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"
