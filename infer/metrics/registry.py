"""Registry of metrics, each with its name, its unit and what it needs of a clip; and the measuring of clips.

A metric is a function of one clip. Its value over several clips is the mean over those that have one, weighted by
their measured frames. Where a clip lacks what a metric needs, or the metric means nothing for it, the metric is
unavailable there and gives a reason; it is never 0 instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from talkinghead import timebase
from talkinghead.geometry.face_regions import NUM_VERTICES

T = TypeVar("T")
Better = Literal["lower", "higher"] | None
"""Direction in which a metric gets better; None: it is a property to compare with the truth's."""


class Unavailable(Exception):
    """The metric has no value for this clip; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Prediction and truth of one clip, whatever there is of them.

    Frame arrays are `[F, …]`; frames with `valid` false are not measured. A field that is None makes the metrics that
    need it unavailable.

    Raises:
        ValueError: An array has a wrong shape or type, or is not finite in a measured frame.
    """

    key: str
    valid: np.ndarray
    """Measured frames, `[F]` bool: those in which the clip has a face and the prediction should be measured."""
    fps: float = timebase.FPS
    predicted_mesh: np.ndarray | None = None
    """`[F, 468, 3]` cm."""
    true_mesh: np.ndarray | None = None
    """`[F, 468, 3]` cm."""
    predicted_pose: np.ndarray | None = None
    """`[F, 6]` degrees and cm, relative to the clip's rest pose or to its first frame, as the evaluation was asked."""
    true_pose: np.ndarray | None = None
    """`[F, 6]` degrees and cm, relative to the same pose."""
    audio: np.ndarray | None = None
    """`[N]` float32 at 16 kHz; frame k begins at sample 16000 k / fps."""
    predicted_video: np.ndarray | None = None
    """`[F, H, W, 3]` RGB uint8."""
    true_video: np.ndarray | None = None
    """`[F, H, W, 3]` RGB uint8, of the size of the predicted video."""
    asked_landmarks: np.ndarray | None = None
    """Landmarks that drove the prediction, where the face should be: `[F, 468, 2]` x/width, y/height."""
    shown_landmarks: np.ndarray | None = None
    """Landmarks that the engine finds in the predicted video, `[F, 468, 2]`; NaN in frames in which it finds none."""
    mouth_reading: np.ndarray | None = None
    """Mouth opening as read from the pixels of the predicted video, `[F]`; NaN where it cannot be read."""

    def __post_init__(self) -> None:
        frames = len(self.valid)
        for name, shape in _FRAME_ARRAYS.items():
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != (frames, *shape):
                raise ValueError(f"{self.key}: {name} is {values.shape}, expected {(frames, *shape)}")
            # One flag for each measured frame, [M]: the other frames may hold NaN.
            finite = np.isfinite(values[self.valid]).reshape(-1, math.prod(shape)).all(axis=1)
            if not finite.all() and name not in _MAY_BE_NAN:
                raise ValueError(f"{self.key}: {name} is not finite in {(~finite).sum()} of {frames} frames")
        self._check_videos()

    def _check_videos(self) -> None:
        videos = {name: getattr(self, name) for name in ("predicted_video", "true_video")}
        there = {name: video for name, video in videos.items() if video is not None}
        for name, video in there.items():
            if video.dtype != np.uint8 or video.ndim != 4 or len(video) != len(self.valid) or video.shape[3] != 3:
                raise ValueError(
                    f"{self.key}: {name} is {video.dtype} {video.shape}, expected uint8 ({len(self.valid)}, H, W, 3)"
                )
        # Images are compared pixel by pixel: nothing is resized here, since that would be measured, too.
        if len({video.shape for video in there.values()}) > 1:
            sizes = " and ".join(f"{name} {video.shape}" for name, video in there.items())
            raise ValueError(f"{self.key}: the videos differ in size: {sizes}")

    @property
    def num_valid(self) -> int:
        """Number of measured frames."""
        return int(self.valid.sum())


_FRAME_ARRAYS = {
    "predicted_mesh": (NUM_VERTICES, 3),
    "true_mesh": (NUM_VERTICES, 3),
    "predicted_pose": (6,),
    "true_pose": (6,),
    "asked_landmarks": (NUM_VERTICES, 2),
    "shown_landmarks": (NUM_VERTICES, 2),
    "mouth_reading": (),
}
# What is read from generated images: some of them may show no face.
_MAY_BE_NAN = {"shown_landmarks", "mouth_reading"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the registry."""

    name: str
    unit: str
    needs: tuple[str, ...]
    """Fields of `Clip` without which the metric is unavailable."""
    better: Better
    meaning: str
    """Explanation of the metric for people: the first line of the function's docstring."""
    function: Callable[[Clip], float]

    def of(self, clip: Clip) -> float:
        """Value of one clip.

        Raises:
            Unavailable: The clip lacks something, or the metric means nothing for it.
        """
        if lacking := [need for need in self.needs if getattr(clip, need) is None]:
            raise Unavailable(f"needs {' and '.join(lacking)}")
        if not clip.num_valid:
            raise Unavailable("no frame to measure")
        # Where the metric means nothing it raises `Unavailable`: NaN or infinity is a defect of the function.
        value = float(self.function(clip))
        assert math.isfinite(value), f"{self.name} of {clip.key} is {value}"
        return value


METRICS: dict[str, Metric] = {}
"""Name → metric, in the order in which they are printed."""


def metric(
    name: str, unit: str, *, needs: tuple[str, ...], better: Better
) -> Callable[[Callable[[Clip], float]], Callable[[Clip], float]]:
    """Decorator that registers a function of one clip as a metric.

    Args:
        name: Name in tables and files, with underscores; it must never change.
        unit: Unit of the value; "" for a plain number.
        needs: Fields of `Clip` without which the metric is unavailable.
        better: Direction in which it gets better.
    """
    assert name not in METRICS, name
    # A misspelt field would make the metric unavailable for every clip.
    assert set(needs) <= {field.name for field in fields(Clip)}, needs

    def register(function: Callable[[Clip], float]) -> Callable[[Clip], float]:
        assert function.__doc__, f"metric {name} must say what it is"
        meaning = function.__doc__.strip().splitlines()[0].rstrip(".")
        METRICS[name] = Metric(name=name, unit=unit, needs=needs, better=better, meaning=meaning, function=function)
        return function

    return register


@dataclass(frozen=True, kw_only=True)
class Result:
    """One metric over all clips."""

    name: str
    unit: str
    better: Better
    value: float | None
    """Mean over the clips, weighted by their measured frames; None: unavailable for every clip."""
    reason_unavailable: str | None
    """Why some or all clips have no value; None where all have one."""
    per_clip: dict[str, float | None]
    """Sample key → value of the clip."""

    def to_json(self) -> dict[str, Any]:
        """All fields as a JSON object."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass
class Tally:
    """Values of one metric clip by clip, and the reasons why some clips have none."""

    values: dict[str, float | None] = field(default_factory=dict)
    """Sample key → value, in the order in which the clips were measured."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Sample key → reason, of the clips without a value, in the same order."""

    def note(self, key: str, measure: Callable[[], float]) -> None:
        """Keep the value that `measure` returns for a clip, or the reason why it raises `Unavailable`."""
        try:
            self.values[key] = measure()
        except Unavailable as reason:
            self.values[key] = None
            self.reasons[key] = str(reason)

    @classmethod
    def together(cls, parts: Iterable[Tally], place: Mapping[str, int]) -> Tally:
        """Values of the clips of all parts, in the order of their places (`place`: sample key → number)."""
        values = {key: value for part in parts for key, value in part.values.items()}
        reasons = {key: reason for part in parts for key, reason in part.reasons.items()}
        return cls(values=_in_order(values, place), reasons=_in_order(reasons, place))

    def result(self, name: str, unit: str, better: Better, weights: Mapping[str, int]) -> Result:
        """The metric over all clips: their mean, weighted by the frames of each (`weights`: sample key → frames)."""
        there = {key: value for key, value in self.values.items() if value is not None}
        # Each clip counts by its frames: a mean over the clips alone would favour short ones.
        total = math.fsum(weights[key] * value for key, value in there.items())
        reason = "; ".join(dict.fromkeys(self.reasons.values())) or None  # each once
        # Some clips have a value: tell how many lack one.
        if reason and there:
            reason = f"{len(self.values) - len(there)} of {len(self.values)} clips: {reason}"
        if not self.values:
            reason = "there are no clips"
        return Result(
            name=name,
            unit=unit,
            better=better,
            value=total / sum(weights[key] for key in there) if there else None,
            reason_unavailable=reason,
            per_clip=dict(self.values),
        )


def _in_order(values: Mapping[str, T], place: Mapping[str, int]) -> dict[str, T]:
    return {key: values[key] for key in sorted(values, key=place.__getitem__)}


@dataclass
class Measurement:
    """Measures clips one after another; keeps only numbers, no arrays."""

    metrics: tuple[str, ...] = ()
    """Names of the metrics; empty: all."""
    _weights: dict[str, int] = field(default_factory=dict)
    _tallies: dict[str, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"there is no metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
        self._tallies = {name: Tally() for name in self.metrics or METRICS}

    def add(self, clip: Clip) -> None:
        """Measure one clip.

        Raises:
            ValueError: A clip of this key has been measured before.
        """
        # The same key again would replace a value in the tallies without a trace.
        if clip.key in self._weights:
            raise ValueError(f"clip {clip.key} is measured twice")
        self._weights[clip.key] = clip.num_valid
        for name, tally in self._tallies.items():
            tally.note(clip.key, partial(METRICS[name].of, clip))

    @classmethod
    def together(cls, parts: Sequence[Measurement], place: Mapping[str, int]) -> Measurement:
        """Measurements of the clips of all parts, as if they had been measured in the order of their places.

        Args:
            parts: Measurements with the same metrics, one at least.
            place: Sample key → number.

        Raises:
            ValueError: A clip is in several parts.
        """
        whole = cls(parts[0].metrics)
        for part in parts:
            if twice := whole._weights.keys() & part._weights.keys():
                raise ValueError(f"clip {min(twice)} is measured twice")
            whole._weights |= part._weights
        for name in whole._tallies:
            whole._tallies[name] = Tally.together([part._tallies[name] for part in parts], place)
        return whole

    def results(self) -> list[Result]:
        """Results of every metric over the clips so far."""
        found = ((METRICS[name], tally) for name, tally in self._tallies.items())
        return [tally.result(metric.name, metric.unit, metric.better, self._weights) for metric, tally in found]


def measure(clips: Iterable[Clip], metrics: tuple[str, ...] = ()) -> list[Result]:
    """Results of metrics over clips; the clips may come from a generator, one is held at a time.

    Args:
        clips: Clips with different keys.
        metrics: Names of the metrics; empty: all.

    Raises:
        ValueError: An unknown metric, or two clips of one key.
    """
    measurement = Measurement(metrics)
    for clip in clips:
        measurement.add(clip)
    return measurement.results()
