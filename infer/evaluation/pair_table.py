"""Table of an evaluation of pairs: every metric of every subject with its interval, floor and differences.

A number is the mean over the clips that have one, after the mean over the seeds of each clip. The noise floor of a
metric is how far re-encoding alone moves it: the mean over the clips of |re-encoded truth - truth|. PSNR is infinite
for the truth; its floor is how far re-encoding moves the copied reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from infer.evaluation.bootstrap import FEWEST_GROUPS, RESAMPLES, Interval, mean_interval
from infer.evaluation.clip_scores import MetricKind, Scores
from infer.evaluation.evaluation_result import number
from infer.evaluation.subjects import COPIED, REENCODED, REENCODED_REFERENCE, TRUTH

FORMAT = 1  # of evaluation.json
Verdict = Literal["within the noise", "too few to tell", "not told apart", "better", "worse", "differs"]
_MOST_REASONS = 4


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """A clip that was to be measured."""

    key: str
    group: str
    """Person or source, drawn as a whole for intervals."""
    measured: int
    """Number of measured frames; 0 where it could not be read."""


@dataclass(frozen=True, kw_only=True)
class SubjectScores:
    """Everything that was measured of a subject."""

    name: str
    role: str
    clips: Mapping[str, Mapping[int, Scores]]
    """Clip → seed → scores, of the clips that were measured."""
    failures: Mapping[str, str]
    """Clip → why it could not be measured."""
    against: tuple[str, ...] = ()
    """Names of the subjects that it is compared with."""
    about: Mapping[str, Any] | None = None
    """Driver, renderer and weights of a pair."""

    def means(self, metric: str) -> dict[str, float]:
        """Clip → mean over its seeds that have a value, of the clips that have one."""
        found: dict[str, float] = {}
        for key, seeds in self.clips.items():
            there = [value for scores in seeds.values() if (value := scores.values.get(metric)) is not None]
            if there:
                found[key] = sum(there) / len(there)
        return found

    def reason(self, metric: str) -> str | None:
        """Why clips lack a value: the reasons, each once; None where none does."""
        reasons = {
            scores.reasons[metric]: None
            for seeds in self.clips.values()
            for scores in seeds.values()
            if metric in scores.reasons
        }
        return "; ".join(list(reasons)[:_MOST_REASONS]) or None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of one subject's values less another's, clip by clip."""

    one: str
    other: str
    metric: str
    interval: Interval
    verdict: Verdict
    """What that says of `one` against `other`."""


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """Result of an evaluation of pairs."""

    title: str
    """Data set and split."""
    protocol: str
    """How the numbers were obtained, in a few sentences."""
    notes: tuple[str, ...]
    """What helps to read the numbers, or is missing."""
    metrics: tuple[MetricKind, ...]
    clips: tuple[ClipFacts, ...]
    subjects: tuple[SubjectScores, ...]
    record: Mapping[str, Any]
    """What is needed to make it again: settings, data, seeds, libraries."""
    resamples: int = RESAMPLES

    @cached_property
    def _by_name(self) -> dict[str, SubjectScores]:
        return {subject.name: subject for subject in self.subjects}

    @cached_property
    def _weights(self) -> dict[str, int]:
        return {clip.key: clip.measured for clip in self.clips}

    @cached_property
    def _groups(self) -> dict[str, str]:
        return {clip.key: clip.group for clip in self.clips}

    def subject(self, name: str) -> SubjectScores:
        """Subject of a name."""
        return self._by_name[name]

    def cell(self, subject: str, metric: str) -> Interval | None:
        """Mean of a subject with its interval; None where no clip has a value."""
        return self._interval(self.subject(subject).means(metric))

    def floor(self, metric: str) -> float | None:
        """Noise floor of a metric; None where it cannot be told."""
        infinite = next(kind.unit for kind in self.metrics if kind.name == metric) == "dB"
        one, other = (REENCODED_REFERENCE, COPIED) if infinite else (REENCODED, TRUTH)
        if one not in self._by_name or other not in self._by_name:
            return None
        values, others = self.subject(one).means(metric), self.subject(other).means(metric)
        found = self._interval({key: abs(values[key] - others[key]) for key in values.keys() & others.keys()})
        return None if found is None else found.mean

    def differences(self) -> list[Difference]:
        """Every subject against those that it is compared with, for the metrics that both have."""
        found = []
        for subject in self.subjects:
            for other in subject.against:
                for metric in self.metrics:
                    values, others = subject.means(metric.name), self.subject(other).means(metric.name)
                    interval = self._interval({key: values[key] - others[key] for key in values if key in others})
                    if interval is not None:
                        verdict = verdict_of(metric, interval, self.floor(metric.name))
                        found.append(
                            Difference(
                                one=subject.name, other=other, metric=metric.name, interval=interval, verdict=verdict
                            )
                        )
        return found

    @property
    def shown(self) -> list[SubjectScores]:
        """Subjects that people look at: all but what is measured for a noise floor alone."""
        return [subject for subject in self.subjects if subject.role != "probe"]

    @property
    def num_groups(self) -> int:
        """Number of groups among the clips."""
        return len({clip.group for clip in self.clips})

    @property
    def num_failures(self) -> int:
        """Number of takes that failed."""
        return sum(len(subject.failures) for subject in self.subjects)

    @property
    def few(self) -> str | None:
        """Warning where there are too few groups for intervals; None where there are enough."""
        if self.num_groups >= FEWEST_GROUPS:
            return None
        people = "1 person or source" if self.num_groups == 1 else f"{self.num_groups} persons or sources"
        return f"The clips are of {people}: with fewer than {FEWEST_GROUPS}, an interval means little."

    def _interval(self, values: Mapping[str, float]) -> Interval | None:
        return mean_interval(values, self._weights, self._groups, resamples=self.resamples)

    def to_json(self) -> dict[str, Any]:
        """All numbers, clip by clip and seed by seed, with means, intervals, floors and differences."""
        return {
            "format": FORMAT,
            "title": self.title,
            "protocol": self.protocol,
            "notes": list(self.notes),
            "resamples": self.resamples,
            "record": dict(self.record),
            "clips": [asdict(clip) for clip in self.clips],
            "metrics": [asdict(metric) | {"noise_floor": self.floor(metric.name)} for metric in self.metrics],
            "subjects": [self._subject_json(subject) for subject in self.subjects],
            "differences": [asdict(difference) for difference in self.differences()],
        }

    def _subject_json(self, subject: SubjectScores) -> dict[str, Any]:
        cells = {metric.name: self.cell(subject.name, metric.name) for metric in self.metrics}
        return {
            "name": subject.name,
            "role": subject.role,
            "about": subject.about,
            "means": {name: None if cell is None else asdict(cell) for name, cell in cells.items()},
            "reasons": {metric.name: reason for metric in self.metrics if (reason := subject.reason(metric.name))},
            "clips": {
                key: {str(seed): dict(scores.values) for seed, scores in seeds.items()}
                for key, seeds in subject.clips.items()
            },
            "failures": dict(subject.failures),
        }

    def text(self) -> str:
        """Table to read: a block for each metric, a line for each subject, and the differences of the pairs below."""
        lines = [self.title, self.protocol, *self.notes, *([self.few] if self.few else []), *self._failed()]
        width = max(len(subject.name) for subject in self.shown)
        scope = ""
        for metric in self.metrics:
            if metric.scope != scope:
                scope = metric.scope
                lines += ["", f"== {scope} =="]
            floor = self.floor(metric.name)
            unit = f" in {metric.unit}" if metric.unit else ""
            lines += ["", f"{label(metric)}{unit}: {metric.meaning}", f"  noise floor {number(floor)}"]
            for subject in self.shown:
                cell = self.cell(subject.name, metric.name)
                reason = subject.reason(metric.name)
                shown = "–" if cell is None else f"{interval_text(cell)}  {clips_text(cell)}"
                if cell is None or (reason is not None and cell.clips < len(self.clips)):
                    shown += f"  ({reason or 'no clip was measured'})"
                lines.append(f"  {subject.name:<{width}}  {shown}")
        lines += ["", "== differences, clip by clip =="]
        before = None
        for difference in self.differences():
            if (difference.one, difference.other) != before:
                before = (difference.one, difference.other)
                lines += ["", f"{difference.one} less {difference.other}"]
            interval = difference.interval
            shown = f"{interval_text(interval)}  {clips_text(interval)}  {difference.verdict}"
            lines.append(f"  {difference.metric:<28}  {shown}")
        return "\n".join(lines) + "\n"

    def _failed(self) -> list[str]:
        return [
            f"FAILED: {subject.name}, {key}: {reason}"
            for subject in self.subjects
            for key, reason in subject.failures.items()
        ]


def verdict_of(metric: MetricKind, interval: Interval, floor: float | None) -> Verdict:
    """What a difference says: nothing where re-encoding alone moves the metric as far, or where 0 is in its interval,
    or where an interval means little.

    Args:
        metric: The metric, for its direction.
        interval: Mean of one's values less the other's.
        floor: Noise floor; None: not known.
    """
    if floor is not None and abs(interval.mean) <= floor:
        return "within the noise"
    if interval.groups < FEWEST_GROUPS:
        return "too few to tell"
    if interval.holds_zero:
        return "not told apart"
    if metric.better is None:
        return "differs"
    return "better" if (interval.mean > 0) == (metric.better == "higher") else "worse"


def label(metric: MetricKind) -> str:
    """Name of a metric with the direction in which it gets better."""
    return metric.name + {"lower": " ↓", "higher": " ↑"}.get(metric.better or "", "")


def interval_text(interval: Interval) -> str:
    """Mean and interval, such as `0.412 [0.388, 0.431]`."""
    if interval.low is None or interval.high is None:
        return f"{number(interval.mean)} [no interval]"
    return f"{number(interval.mean)} [{number(interval.low)}, {number(interval.high)}]"


def clips_text(interval: Interval) -> str:
    """Number of clips that a mean is over, in words."""
    return "1 clip" if interval.clips == 1 else f"{interval.clips} clips"
