"""Result of an evaluation: numbers of the predictions and of their baselines, as JSON and as a table to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from infer.metrics.registry import Result
from talkinghead import timebase
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json
from talkinghead.provenance import pretty_json

JSON_FILE = "validation.json"
TABLE_FILE = "validation.txt"
FORMAT = 1  # of validation.json; files with another number are refused

Role = Literal["prediction", "baseline", "truth"]


@dataclass(frozen=True, kw_only=True)
class ClipCount:
    """One clip of an evaluation and its numbers of frames."""

    key: str
    num_frames: int
    num_invalid: int
    """Frames that are not measured, e.g. without a face."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing that was measured: a prediction, a baseline, or the truth itself."""

    name: str
    role: Role
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All metrics of all subjects over some clips."""

    kind: str
    """`mesh`, `pose` or `video`."""
    protocol: str
    """How the numbers were obtained, in a sentence or two."""
    notes: tuple[str, ...]
    """Sentences that help to read the numbers, or tell what is missing."""
    clips: tuple[ClipCount, ...]
    subjects: tuple[Subject, ...]
    """Predictions, then baselines, then the truth."""

    @property
    def num_frames(self) -> int:
        """Number of frames of all clips."""
        return sum(clip.num_frames for clip in self.clips)

    @property
    def num_invalid(self) -> int:
        """Number of frames of all clips that are not measured."""
        return sum(clip.num_invalid for clip in self.clips)

    def result(self, metric: str, subject: str | None = None) -> Result:
        """One metric of a subject; by default of the first prediction.

        Raises:
            KeyError: No such metric or subject.
        """
        found = [item for item in self.subjects if subject in (None, item.name)]
        for result in found[0].results if found else ():
            if result.name == metric:
                return result
        raise KeyError(f"{metric} of {subject}")

    def numbers(self) -> dict[str, float]:
        """Available metrics of the predictions by name, to log: `mesh_l1`; with two predictions `free-running/pose_l1`.

        The first metric is also given relative to the first baseline: `mesh_l1_to_neutral_mesh` is 0.25 where the
        error is a quarter of the neutral mesh's. A metric in dB, which is the logarithm of a ratio already, is given as
        a difference: `psnr_above_reference_copy`.
        """
        predictions = [subject for subject in self.subjects if subject.role == "prediction"]
        baseline = next((subject for subject in self.subjects if subject.role == "baseline"), None)
        numbers: dict[str, float] = {}
        for subject in predictions:
            prefix = f"{subject.name}/" if len(predictions) > 1 else ""
            numbers |= {prefix + result.name: result.value for result in subject.results if result.value is not None}
            # The first metric against the first baseline: one number that tells whether the weights learnt anything.
            first, there = subject.results[0], baseline.results[0].value if baseline else None
            # Without a baseline, or against one of exactly 0, there is no ratio.
            if baseline is None or first.value is None or not there:
                continue
            known = baseline.name.replace(" ", "_")
            if first.unit == "dB":
                numbers[f"{prefix}{first.name}_above_{known}"] = first.value - there
            else:
                numbers[f"{prefix}{first.name}_to_{known}"] = first.value / there
        return numbers

    def to_json(self) -> dict[str, Any]:
        """All fields and the counts as a JSON object."""
        return {"num_clips": len(self.clips), "num_frames": self.num_frames, "num_invalid": self.num_invalid} | asdict(
            self
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        """Inverse of `to_json`; `KeyError`, `TypeError`, `OverflowError` or `ValueError` for anything else."""
        evaluation = cls(
            kind=_checked(value["kind"], str),
            protocol=_checked(value["protocol"], str),
            # JSON has only lists: tuples again, so that the result equals the one that was written.
            notes=tuple(_checked(note, str) for note in _checked(value["notes"], list, tuple)),
            clips=tuple(
                ClipCount(
                    key=_checked(clip["key"], str),
                    num_frames=_checked(clip["num_frames"], int),
                    num_invalid=_checked(clip["num_invalid"], int),
                )
                for clip in value["clips"]
            ),
            subjects=tuple(
                Subject(
                    name=_checked(subject["name"], str),
                    role=_checked(subject["role"], str),
                    results=tuple(_result(result) for result in subject["results"]),
                )
                for subject in value["subjects"]
            ),
        )
        # Tables and plots take a metric by its place in any of the subjects.
        metrics = {tuple(result.name for result in subject.results) for subject in evaluation.subjects}
        if len(metrics) > 1 or () in metrics:
            raise ValueError("its subjects do not have the same metrics")
        return evaluation

    def summary(self) -> str:
        """Numbers of clips and frames that were measured, in a few words."""
        seconds = self.num_frames / timebase.FPS
        clips = "1 clip" if len(self.clips) == 1 else f"{len(self.clips)} clips"
        return f"{clips}, {self.num_frames} frames ({seconds:.0f} s), {self.num_invalid} without a face"

    def table(self) -> str:
        """Table to read: a row for each metric, a column for each subject.

        Below it: why values of the predictions are missing, and their values clip by clip.
        """
        names = [subject.name for subject in self.subjects]
        rows = [["", "unit", *names]]
        # All subjects have the same metrics in the same order: the index of a row fits each of them.
        for index, result in enumerate(self.subjects[0].results if self.subjects else ()):
            values = (subject.results[index] for subject in self.subjects)
            rows.append([_label(result), result.unit, *(number(item.value) for item in values)])
        lines = [self.summary(), self.protocol, *self.notes, "", *_aligned(rows)]
        for subject in self.subjects:
            if subject.role == "prediction":
                lines += _unavailable(subject)
        for subject in self.subjects:
            if subject.role == "prediction" and len(self.clips) > 1:
                lines += ["", f"{subject.name}, clip by clip", *_aligned(self._clip_rows(subject))]
        return "\n".join(lines) + "\n"

    def _clip_rows(self, subject: Subject) -> list[list[str]]:
        shown = [result for result in subject.results if result.value is not None]
        rows = [["", "frames", *(result.name for result in shown)]]
        for clip in self.clips:
            values = [number(result.per_clip.get(clip.key)) for result in shown]
            rows.append([clip.key, str(clip.num_frames - clip.num_invalid), *values])
        return rows


def write_evaluations(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write `validation.json` and `validation.txt`, each whole or not at all.

    Args:
        folder: Folder for the two files; made when needed.
        evaluations: Title (`held-out clips`, `training clips`) → evaluation.
    """
    text = "\n\n".join(f"{title}: {evaluation.table()}" for title, evaluation in evaluations.items())
    value = {
        "format": FORMAT,
        "evaluations": [{"title": title} | item.to_json() for title, item in evaluations.items()],
    }
    write_whole(folder / TABLE_FILE, text.encode())
    write_whole(folder / JSON_FILE, pretty_json(value))


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Evaluations of a folder by title: inverse of `write_evaluations`.

    Raises:
        ValueError: The file is damaged or of another format version.
        OSError: There is no file.
    """
    path = folder / JSON_FILE
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"it has format {value['format']}, this code reads {FORMAT}")
        return {_checked(item["title"], str): Evaluation.from_json(item) for item in value["evaluations"]}
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is no result of an evaluation: {error}") from error


def _result(value: Mapping[str, Any]) -> Result:
    """A metric out of JSON; its numbers are printed and drawn, so that nothing else may stand for one."""
    return Result(
        name=_checked(value["name"], str),
        unit=_checked(value["unit"], str),
        better=_checked(value["better"], str, type(None)),
        value=_number(value["value"]),
        reason_unavailable=_checked(value["reason_unavailable"], str, type(None)),
        per_clip={key: _number(item) for key, item in _checked(value["per_clip"], dict).items()},
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(_checked(value, int, float))


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r:.40} stands where {kinds[0].__name__} belongs")
    return value


def number(value: float | None) -> str:
    """A value to read, with about three significant digits; `–` where there is none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        # Decimals by size: the format `g` would drop zeros at the end.
        decimals = 3 if size < 1 else 2 if size < 100 else 1 if size < 1000 else 0
        return f"{value:.{decimals}f}"
    return f"{value:.1e}"


def _label(result: Result) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(result.better or "", "")
    return result.name + arrow


def _unavailable(subject: Subject) -> list[str]:
    # Metrics that lack a value for the same reason share a line.
    missing: dict[str, list[str]] = {}
    for result in subject.results:
        if result.reason_unavailable:
            missing.setdefault(result.reason_unavailable, []).append(result.name)
    return [f"{subject.name}: {', '.join(names)} unavailable: {reason}" for reason, names in missing.items()]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table with equally wide cells: the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
