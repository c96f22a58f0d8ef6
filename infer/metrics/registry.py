"""The registry of metrics: what each is called, its unit, what it needs of a clip; and the measuring of clips.

A metric is a function of one clip. Over several clips its value is the mean weighted by their frames with a face, over
the clips that have it. Where a clip lacks what a metric needs, or the metric means nothing for it, it is unavailable
there and says why; it is never 0 instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import numpy as np

from talkinghead import timebase
from talkinghead.geometry.face_regions import NUM_VERTICES

Better = Literal["lower", "higher"] | None
"""Which way a metric gets better; None: it is a property to compare with the truth's."""


class Unavailable(Exception):
    """The metric has no value for this clip; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is known of one clip. Frame arrays are `[F, …]`; frames with `valid` false are not measured."""

    key: str
    valid: np.ndarray
    """`[F]` bool, true where the clip has a face (and the prediction is to be measured)."""
    fps: float = timebase.FPS
    predicted_mesh: np.ndarray | None = None
    """`[F, 468, 3]` cm."""
    true_mesh: np.ndarray | None = None
    predicted_pose: np.ndarray | None = None
    """`[F, 6]` degrees and cm, relative to the clip's rest pose or first frame, as the evaluation says."""
    true_pose: np.ndarray | None = None
    audio: np.ndarray | None = None
    """`[N]` float32 at 16 kHz, frame k beginning at sample 16000 k / fps."""
    predicted_video: np.ndarray | None = None
    """`[F, H, W, 3]` RGB uint8."""
    true_video: np.ndarray | None = None
    """The same shape and type."""
    asked_landmarks: np.ndarray | None = None
    """`[F, 468, 2]` x/width, y/height: where the face was to be."""
    shown_landmarks: np.ndarray | None = None
    """Where the landmark engine finds the face in the predicted video; NaN in frames in which it finds none."""
    mouth_reading: np.ndarray | None = None
    """`[F]` opening of the mouth as read from the pixels of the predicted video; NaN where it cannot be read."""

    def __post_init__(self) -> None:
        frames = len(self.valid)
        for name, shape in _FRAME_ARRAYS.items():
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != (frames, *shape):
                raise ValueError(f"{self.key}: {name} is {values.shape}, expected {(frames, *shape)}")
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
        if len({video.shape for video in there.values()}) > 1:
            sizes = " and ".join(f"{name} {video.shape}" for name, video in there.items())
            raise ValueError(f"{self.key}: the videos are not of one size: {sizes}")

    @property
    def num_valid(self) -> int:
        """Frames that are measured."""
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
_MAY_BE_NAN = {"shown_landmarks", "mouth_reading"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the registry."""

    name: str
    unit: str
    needs: tuple[str, ...]
    """Fields of `Clip`."""
    better: Better
    meaning: str
    """First line of the function's docstring."""
    function: Callable[[Clip], float]

    def of(self, clip: Clip) -> float:
        """The value of one clip.

        Raises:
            Unavailable: The clip lacks something, or the metric means nothing for it.
        """
        if lacking := [need for need in self.needs if getattr(clip, need) is None]:
            raise Unavailable(f"needs {' and '.join(lacking)}")
        if not clip.num_valid:
            raise Unavailable("no frame to measure")
        value = float(self.function(clip))
        assert math.isfinite(value), f"{self.name} of {clip.key} is {value}"
        return value


METRICS: dict[str, Metric] = {}
"""Name → metric, in the order in which they are printed."""


def metric(
    name: str, unit: str, *, needs: tuple[str, ...], better: Better
) -> Callable[[Callable[[Clip], float]], Callable[[Clip], float]]:
    """Decorator that registers a function of one clip.

    Args:
        name: Stable word with underscores.
        unit: Unit of the value; "" for a plain number.
        needs: Fields of `Clip` without which it is unavailable.
        better: Which way it gets better.
    """
    assert name not in METRICS, name
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
    """None: unavailable for every clip."""
    reason_unavailable: str | None
    """Why, where some or all clips have no value."""
    per_clip: dict[str, float | None]
    """Sample key → its value."""

    def to_json(self) -> dict[str, Any]:
        """All fields as a JSON object."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass
class Tally:
    """What one metric found in each clip, and why in some of them nothing."""

    values: dict[str, float | None] = field(default_factory=dict)
    """Sample key → value, in the order in which the clips came."""
    reasons: dict[str, None] = field(default_factory=dict)
    """Each once, in the order in which they came up."""

    def note(self, key: str, measure: Callable[[], float]) -> None:
        """Keep what `measure` gives for a clip, or why it is `Unavailable`."""
        try:
            self.values[key] = measure()
        except Unavailable as reason:
            self.values[key] = None
            self.reasons[str(reason)] = None

    def result(self, name: str, unit: str, better: Better, weights: Mapping[str, int]) -> Result:
        """The metric over all clips: their mean, weighted by the frames of each (sample key → frames)."""
        there = {key: value for key, value in self.values.items() if value is not None}
        total = math.fsum(weights[key] * value for key, value in there.items())
        reason = "; ".join(self.reasons) or None
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


@dataclass
class Measurement:
    """Measures clips one after another; only numbers are kept of each."""

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
        if clip.key in self._weights:
            raise ValueError(f"clip {clip.key} is measured twice")
        self._weights[clip.key] = clip.num_valid
        for name, tally in self._tallies.items():
            tally.note(clip.key, partial(METRICS[name].of, clip))

    def results(self) -> list[Result]:
        """Every metric over the clips so far."""
        found = ((METRICS[name], tally) for name, tally in self._tallies.items())
        return [tally.result(metric.name, metric.unit, metric.better, self._weights) for metric, tally in found]


def measure(clips: Iterable[Clip], metrics: tuple[str, ...] = ()) -> list[Result]:
    """Metrics over clips; they may come from a generator, one is held at a time.

    Args:
        clips: With different keys.
        metrics: Names of the metrics; empty: all.

    Raises:
        ValueError: An unknown metric, or two clips of one key.
    """
    measurement = Measurement(metrics)
    for clip in clips:
        measurement.add(clip)
    return measurement.results()
