"""Row of the bench: our figure, the baseline's, and whether their ratio reaches its goal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from talkinghead.provenance import pretty_json


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    name: str
    ours: float | None
    """Our figure, in `unit`; None when it cannot be measured here, for the reason in the note."""
    baseline: float | None
    """Figure of the baseline; None when it cannot run here, for the reason in the note."""
    unit: str
    better: Literal["higher", "lower"]
    goal: float
    """Value that the ratio should reach."""
    note: str
    """Description of the work on either side, and of what the figure leaves out."""

    @property
    def ratio(self) -> float | None:
        """Our figure over the baseline's, None without one of them."""
        return self.ours / self.baseline if self.ours is not None and self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached, None without a ratio."""
        if self.ratio is None:
            return None
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    @property
    def goal_text(self) -> str:
        """Goal with its direction, e.g. `<= 0.6`."""
        return f"{'>=' if self.better == 'higher' else '<='} {self.goal:g}"

    def to_json(self) -> dict[str, Any]:
        """Row of `bench.json`; figures with four significant digits."""
        values = asdict(self) | {"ratio": self.ratio, "met": self.met, "goal": self.goal_text}
        return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_rows(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write `bench.json`.

    Args:
        path: File to write.
        rows: All comparisons.
        about: Facts about machine, material and libraries, as further fields.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pretty_json(about | {"rows": [row.to_json() for row in rows]}))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `bench.json`."""
    return json.loads(path.read_bytes())["rows"]


def show_rows(rows: Sequence[Row], console: Console) -> None:
    """Print the rows as a table, and below it why rows have no figure of ours.

    A goal that is met is green, a missed one red, a row without a ratio yellow.
    """
    table = Table(title="bench: ours / baseline", title_justify="left")
    table.add_column("row", no_wrap=True)
    for name in ("ours", "baseline", "ratio", "goal"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for row in rows:
        colour = {True: "green", False: "red", None: "yellow"}[row.met]
        ratio = "-" if row.ratio is None else f"[{colour}]{row.ratio:.3g}[/]"
        figures = ("-" if figure is None else f"{figure:.4g}" for figure in (row.ours, row.baseline))
        table.add_row(row.name, *figures, ratio, row.goal_text, row.unit)
    console.print(table)
    for row in rows:
        if row.ours is None:
            console.print(f"{row.name}: {row.note}", highlight=False, markup=False)
