"""View: the report's page as HTML, from the numbers, the accounting and the images."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from orchestration.report.accounting import Accounting, InputOutcome
from orchestration.report.charts import sparkline_svg, waveform_svg
from orchestration.report.column_view import MOST_FITS, column_views, fact_text
from orchestration.report.distributions import charts
from orchestration.report.images import EmbeddedImage, Strip, Tile
from orchestration.report.reasons import REASONS
from orchestration.report.state import DataState
from orchestration.report.unusual import note_kind
from orchestration.units.records import Attempt, QuarantineRecord
from talkinghead.schema import SampleIndex

# Most rows of the page's lists; `inputs.csv` has every input.
MOST_REJECTED_ROWS = 60
MOST_PER_REASON = 8
MOST_PER_CAUSE = 20
MOST_KINDS = 40
TRACE_CHARACTERS = 4000

FATE_WORDS = {"sample": "became samples", "rejected": "rejected", "quarantined": "quarantined", "pending": "pending"}
JOB_WORDS = {
    "source": "Source found",
    "ingest": "Cut and cropped",
    "annotate": "Annotated",
    "pack": "Packed",
    "filter": "Kept by the filters",
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """Sample images of the page."""

    tiles: Sequence[Tile] = ()
    """Kept samples, one frame each."""
    strips: Sequence[Strip] = ()
    """Some of them over time."""
    rejected: Sequence[Tile] = ()
    """Samples that were annotated and not kept."""
    unusual: Sequence[Tile] = ()
    """Samples whose source was unusual, one for each kind of note."""
    errors: list[str] = field(default_factory=list)
    """Samples that could not be read."""


@dataclass(frozen=True, kw_only=True)
class StripView:
    """A strip with its tracks drawn as SVG."""

    row: SampleIndex
    image: EmbeddedImage
    seconds: float
    mouth: Markup
    yaw: Markup
    sound: Markup


@dataclass(frozen=True, kw_only=True)
class QuarantineEntry:
    """One quarantined unit as the page lists it."""

    job: str
    key: str
    source: str
    attempts: list[Attempt]
    tail: str
    """End of the last try's traceback."""


@dataclass(frozen=True, kw_only=True)
class QuarantineGroup:
    """The quarantined units of one cause."""

    cause: str
    total: int
    """Number of units; not all of them are entries."""
    retry: str
    """Command that releases them."""
    entries: list[QuarantineEntry]


def render_page(
    summary: dict[str, Any], accounting: Accounting, state: DataState, images: Images, data_uri: str
) -> str:
    """Render the HTML text of the report.

    Args:
        summary: Value of `report.json`.
        accounting: Outcome of every input.
        state: State of the data set, for quarantine records and the index.
        images: Sample images to show.
        data_uri: DATA as the user names it, for the retry command.
    """
    # File names and messages come from the user's data: everything is escaped but our own SVG and CSS (Markup).
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(number=number_text, bytes=bytes_text, duration=duration_text, decimal=decimal_text)
    environment.filters["note_kind"] = note_kind
    # What the sections show, and which of them there are: the contents list and the page agree by `present`.
    strips, mouth_top, yaw_top = _strip_views(images.strips)
    histograms = charts(state.index, state.filters)
    rejected_rows = rejected_examples(accounting)
    quarantine = quarantine_groups(state, data_uri)
    columns = column_views(state, summary["columns"], data_uri)
    reasons = summary["rejected"] | summary["pieces"]["rejected_reasons"]
    present = {
        "funnel": ("Funnel", True),
        "faces": ("Faces", images.tiles),
        "clips": ("Clips", strips),
        "scores": ("Scores", histograms),
        "unusual": ("Unusual", summary["notes"] or summary["unusual_scores"]),
        "rejected": ("Left out", reasons),
        "columns": ("Derived columns", columns or summary["fits"]),
        "quarantine": ("Quarantine", quarantine),
        "difference": ("Changes", summary["difference"]),
        "cost": ("Time and size", summary["jobs"] or summary["bytes_per_frame"]),
        "origin": ("Origin", True),
    }
    return environment.get_template("page.html.j2").render(
        s=summary,
        d=summary["difference"],
        style=Markup((folder / "page.css").read_text("utf-8")),
        datasets=", ".join(summary["datasets"]) or "no data set",
        seconds=summary["hours"] * 3600,
        sections=[(name, title) for name, (title, shown) in present.items() if shown],
        fate_words=FATE_WORDS,
        job_words=JOB_WORDS,
        funnel=accounting.funnel(),
        tiles=images.tiles,
        strips=strips,
        mouth_top=mouth_top,
        yaw_top=yaw_top,
        charts=histograms,
        has_limits=any(chart.limits for chart in histograms),
        notes=summary["notes"][:MOST_KINDS],
        unusual_tiles=images.unusual,
        reasons=list(reasons),
        sentences=REASONS,
        rejected_tiles=images.rejected,
        rejected_rows=rejected_rows,
        columns=columns,
        fits=summary["fits"][:MOST_FITS],
        fact_text=fact_text,
        quarantine=quarantine,
        member_sizes=sorted(summary["bytes_per_frame"].items(), key=lambda item: -item[1]),
        image_errors=images.errors,
    )


def rejected_examples(accounting: Accounting) -> list[InputOutcome]:
    """Some rejected inputs of every reason, the most frequent reason first, in catalog order within a reason."""
    # Few of each reason, so that a frequent one does not push out the others.
    by_reason: dict[str, list[InputOutcome]] = defaultdict(list)
    for outcome in accounting.inputs:
        if outcome.fate == "rejected" and len(by_reason[outcome.reason or ""]) < MOST_PER_REASON:
            by_reason[outcome.reason or ""].append(outcome)
    ordered = [outcome for reason in accounting.reasons("rejected") for outcome in by_reason[reason]]
    return ordered[:MOST_REJECTED_ROWS]


def quarantine_groups(state: DataState, data_uri: str) -> list[QuarantineGroup]:
    """Quarantined units by cause, the most frequent cause first, with the command that retries them."""
    by_cause: dict[str, list[QuarantineRecord]] = defaultdict(list)
    # Units of ingest, of this annotation version, of all versions of derived columns, and of global fits.
    derived = (record for column in state.columns for record in column.quarantined)
    for record in (*state.ingest.values(), *state.annotate.values(), *derived, *state.fit_parts):
        if isinstance(record, QuarantineRecord):
            by_cause[record.cause].append(record)
    return [
        QuarantineGroup(
            cause=cause,
            total=len(records),
            retry=retry_line(data_uri, cause),
            entries=[
                QuarantineEntry(
                    job=record.job,
                    key=record.key,
                    source=record.source,
                    attempts=record.attempts,
                    tail=record.attempts[-1].trace[-TRACE_CHARACTERS:].strip(),
                )
                for record in records[:MOST_PER_CAUSE]
            ],
        )
        for cause, records in sorted(by_cause.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def retry_line(data_uri: str, cause: str) -> str:
    """Command line that releases the units of a cause, to be copied into a shell; make takes values as they are."""
    return f"make retry DATA={shlex.quote(data_uri)} CAUSE={shlex.quote(cause)}"


def _strip_views(strips: Sequence[Strip]) -> tuple[list[StripView], float, float]:
    """Draw the tracks of all strips at one scale, so that clips can be compared.

    Returns:
        The strips, and the tops of the scale: mouth opening in units of the mouth's width, yaw in degrees.
    """
    # Lower bounds of the tops, so that the noise of a still face does not fill the height.
    mouth_top = max((float(np.nanmax(strip.mouth_opening, initial=0.0)) for strip in strips), default=0.0)
    yaw_top = max((float(np.nanmax(np.abs(strip.yaw_deg), initial=0.0)) for strip in strips), default=0.0)
    mouth_top, yaw_top = max(mouth_top, 0.1), max(10.0, 10 * math.ceil(yaw_top / 10))
    views = [
        StripView(
            row=strip.row,
            image=strip.image,
            seconds=strip.seconds,
            mouth=sparkline_svg(strip.mouth_opening, 0, mouth_top, "mouth opening over time"),
            yaw=sparkline_svg(strip.yaw_deg, -yaw_top, yaw_top, "head yaw over time", zero=True),
            sound=waveform_svg(strip.envelope, "loudness over time"),
        )
        for strip in strips
    ]
    return views, mouth_top, yaw_top


def number_text(value: int) -> str:
    """Whole number with thousands separated: `12,345`."""
    return f"{value:,}"


def bytes_text(value: float) -> str:
    """Size in the unit that reads best, in powers of 1000: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def duration_text(seconds: float, *, spelled: bool = False) -> str:
    """Duration in the unit that reads best: `4.2 s`, `3.1 min`, `12 h`; spelled out, `12 hours`."""
    for size, short, word in ((3600, "h", "hours"), (60, "min", "minutes"), (1, "s", "seconds")):
        if seconds >= size * 1.5 or size == 1:
            value = seconds / size
            digits = 0 if value >= 100 else 1
            return f"{value:,.{digits}f} {word if spelled else short}"
    raise AssertionError


def decimal_text(value: float | None, suffix: str = "") -> str:
    """Number with three significant digits, thousands separated; a dash for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + suffix
