"""One line of the bench: our figure, the baseline's, and whether the ratio reaches its goal."""

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
    """A comparison. `ratio` is ours over the baseline's."""

    name: str
    ours: float
    baseline: float | None
    """None when the baseline cannot run here; the note says why."""
    unit: str
    better: Literal["higher", "lower"]
    goal: float
    """What the ratio should reach."""
    note: str
    """What was run on either side, and what the figure leaves out."""

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline's."""
        return self.ours / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached, None without a baseline."""
        if self.ratio is None:
            return None
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    @property
    def goal_text(self) -> str:
        """E.g. `<= 0.6`."""
        return f"{'>=' if self.better == 'higher' else '<='} {self.goal:g}"

    def to_json(self) -> dict[str, Any]:
        """The row of `bench.json`; figures with four digits."""
        values = asdict(self) | {"ratio": self.ratio, "met": self.met, "goal": self.goal_text}
        return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_rows(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write `bench.json`: `rows`, and what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pretty_json(about | {"rows": [row.to_json() for row in rows]}))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `bench.json`."""
    return json.loads(path.read_bytes())["rows"]


def show_rows(rows: Sequence[Row], console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title="bench: ours / baseline", title_justify="left")
    table.add_column("row", no_wrap=True)
    for name in ("ours", "baseline", "ratio", "goal"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for row in rows:
        colour = {True: "green", False: "red", None: "yellow"}[row.met]
        baseline = "-" if row.baseline is None else f"{row.baseline:.4g}"
        ratio = "-" if row.ratio is None else f"[{colour}]{row.ratio:.3g}[/]"
        table.add_row(row.name, f"{row.ours:.4g}", baseline, ratio, row.goal_text, row.unit)
    console.print(table)
