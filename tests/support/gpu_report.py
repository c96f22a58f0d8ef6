"""Report of what was measured on a device: a JSON file for programs, and a page of text for people."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from talkinghead.files.atomic import write_whole

SUSPECTS = {
    1: "reading processes forked from a process full of threads",
    2: "attention with more than 65,535 rows",
    3: "poses that go to the host in every loss",
    4: "convolutions of speech row by row",
    5: "pose features in pageable memory",
    6: "new shapes of convolutions at each step of speech",
    7: "reseeding for each microbatch forbids CUDA graphs",
    8: "two processes on a GPU that allows one",
    9: "a memory limit set before CUDA loads",
    10: "latents that differ by device under one name",
    11: "determinism promised where it holds on a CPU only",
    12: "images that lose the layout of channels_last",
    13: "products of matrices in full float32 without need",
}
"""What was suspected to go wrong on a GPU only, by its number in docs/gpu.md."""
Verdict = Literal["real", "not met", "not judged"]
"""real: it happens on this device with what the library does by itself. not met: it does not. not judged: not here."""


@dataclass
class Report:
    """Figures and verdicts of one run of the tests. Both files are written anew after each entry.

    Args:
        folder: Folder of report.json and report.txt.
        about: What was measured: device, sizes, versions.
    """

    folder: Path
    about: dict[str, Any]
    figures: dict[str, dict[str, float | str]] = field(default_factory=dict)
    verdicts: dict[int, tuple[Verdict, str]] = field(default_factory=dict)

    def note(self, name: str, **figures: float | str) -> None:
        """Add figures of something that was measured; their names end in their units."""
        self.figures.setdefault(name, {}).update(figures)
        self._write()

    def judge(self, suspect: int, verdict: Verdict, why: str) -> None:
        """Say whether a suspect of `SUSPECTS` was real, in a line with the reason."""
        self.verdicts[suspect] = verdict, why
        self._write()

    def _write(self) -> None:
        found = {
            number: {"suspect": text, "verdict": verdict, "why": why}
            for number, text in SUSPECTS.items()
            for verdict, why in [self.verdicts.get(number, ("not judged", "its test did not run to its end"))]
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"about": self.about, "suspects": found, "figures": self.figures}
        write_whole(self.folder / "report.json", (json.dumps(content, indent=2) + "\n").encode())
        write_whole(self.folder / "report.txt", self._text(found).encode())

    def _text(self, found: dict[int, dict[str, str]]) -> str:
        lines = [f"{name}: {value}" for name, value in self.about.items()] + ["", "Suspects (docs/gpu.md)"]
        lines += [f"  {number:2} {one['verdict']:10} {one['suspect']}: {one['why']}" for number, one in found.items()]
        lines += ["", "Figures"]
        for name, figures in self.figures.items():
            shown = [
                f"{key} {value if isinstance(value, str) else format(value, '.4g')}" for key, value in figures.items()
            ]
            lines.append(f"  {name}: {', '.join(shown)}")
        return "\n".join(lines) + "\n"
