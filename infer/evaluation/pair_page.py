"""The page of an evaluation of pairs: one HTML file that holds everything, to look at and to send."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from infer.evaluation.bootstrap import Interval
from infer.evaluation.clip_scores import MetricKind
from infer.evaluation.evaluation_result import number
from infer.evaluation.pair_table import Difference, PairTable, SubjectScores, clips_text, interval_text, label
from infer.evaluation.score_folder import ScoreFolder
from talkinghead.files.atomic import write_whole

MOST_CLIPS = 6
"""Clips whose frames are shown, the first ones."""
HEADLINES = ("lip_error", "mouth_opening_correlation", "pose_rotation_error", "psnr", "mouth_psnr", "ssim")
"""Metrics that are drawn; the tables hold all."""
_LEFT, _WIDTH, _ROW = 4.0, 92.0, 22  # percent of the plot's width that lie before and under the scale; pixels of a row


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A mean and its interval on a scale, in percent of the plot's width."""

    subject: SubjectScores
    cell: Interval
    at: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """A headline metric, drawn."""

    metric: MetricKind
    marks: list[_Mark]
    floor_percent: float | None
    """Width of the noise floor in percent of the plot's width."""
    least: str
    most: str
    missing: list[str]
    """Subjects without a value."""


def write_page(path: Path, table: PairTable, scores: ScoreFolder) -> None:
    """Write the page, whole or not at all.

    Args:
        path: File to write.
        table: The numbers.
        scores: Folder with the frames of the takes.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": number, "label": label, "interval": interval_text, "clips": clips_text}
    shown = table.shown
    page = environment.get_template("pair_page.html.j2").render(
        table=table,
        subjects=shown,
        plots=[plot for metric in table.metrics if metric.name in HEADLINES and (plot := _plot(table, metric, shown))],
        scopes=_scopes(table, shown),
        duels=_duels(table),
        metrics={metric.name: metric for metric in table.metrics},
        sheets=_sheets(table, shown, scores),
        failures=[(subject.name, key, why) for subject in table.subjects for key, why in subject.failures.items()],
        row=_ROW,
    )
    write_whole(path, page.encode())


def _scopes(table: PairTable, subjects: Sequence[SubjectScores]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Scope → its metrics with a cell for each subject."""
    found: dict[str, list[dict[str, Any]]] = {}
    for metric in table.metrics:
        cells = [
            {"cell": table.cell(subject.name, metric.name), "reason": subject.reason(metric.name) or "not measured"}
            for subject in subjects
        ]
        found.setdefault(metric.scope, []).append({"metric": metric, "floor": table.floor(metric.name), "cells": cells})
    return list(found.items())


def _plot(table: PairTable, metric: MetricKind, subjects: Sequence[SubjectScores]) -> _Plot | None:
    """A metric's means and intervals on one scale; None where fewer than two subjects have it."""
    cells = {subject.name: table.cell(subject.name, metric.name) for subject in subjects}
    there = {name: cell for name, cell in cells.items() if cell is not None}
    if len(there) < 2:
        return None
    ends = [end for cell in there.values() for end in (cell.mean, cell.low, cell.high) if end is not None]
    least, most = min(ends), max(ends)
    span = most - least or 1.0

    def percent(value: float) -> float:
        return _LEFT + _WIDTH * (value - least) / span

    marks = [
        _Mark(
            subject=subject,
            cell=cell,
            at=percent(cell.mean),
            low=percent(cell.mean if cell.low is None else cell.low),
            high=percent(cell.mean if cell.high is None else cell.high),
        )
        for subject in subjects
        if (cell := cells[subject.name]) is not None
    ]
    floor = table.floor(metric.name)
    return _Plot(
        metric=metric,
        marks=marks,
        floor_percent=None if floor is None else min(_WIDTH * floor / span, _WIDTH),
        least=number(least),
        most=number(most),
        missing=[name for name, cell in cells.items() if cell is None],
    )


def _duels(table: PairTable) -> list[tuple[str, list[str], list[tuple[MetricKind, list[Difference | None]]]]]:
    """For each pair: whom it is compared with, and each metric's differences, those without any left out."""
    differences = {(item.one, item.other, item.metric): item for item in table.differences()}
    found = []
    for subject in table.subjects:
        others = [other for other in subject.against if any(key[:2] == (subject.name, other) for key in differences)]
        rows = [
            (metric, [differences.get((subject.name, other, metric.name)) for other in others])
            for metric in table.metrics
        ]
        if others:
            found.append((subject.name, others, [row for row in rows if any(row[1])]))
    return found


def _sheets(
    table: PairTable, subjects: Sequence[SubjectScores], scores: ScoreFolder
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Clip → name of a subject and its frames as a data URI."""
    sheets = []
    for clip in table.clips[:MOST_CLIPS]:
        # The truth comes first: what all others are compared with.
        order = sorted(subjects, key=lambda subject: subject.role != "truth")
        strips = [
            (subject.name, "data:image/jpeg;base64," + base64.b64encode(strip).decode())
            for subject in order
            if clip.key in subject.clips and (strip := scores.strip(subject.name, clip.key)) is not None
        ]
        sheets.append((clip.key, strips))
    return sheets
