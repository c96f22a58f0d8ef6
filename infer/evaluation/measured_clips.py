"""Measurements of clips, subject by subject: numbers only, without images, which several processes can put together.

An evaluation measures one clip after another. Where processes share the clips out, each has measurements of its own
ones, and `Join` makes those of all clips from them; the results are then the same as those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from infer.evaluation.evaluation_result import ClipCount, Role
from infer.metrics.registry import Clip, Measurement


@dataclass
class MeasuredClips:
    """Measurements of all subjects (predictions, baselines, truth) over some clips."""

    metrics: tuple[str, ...]
    """Names of the metrics."""
    clips: list[ClipCount] = field(default_factory=list)
    """Clips, with their numbers of frames."""
    subjects: dict[str, tuple[Role, Measurement]] = field(default_factory=dict)
    """Name → measurements, in the order of the first measured clip."""

    def count(self, key: str, valid: np.ndarray) -> bool:
        """Count a clip by its key and its frames to measure, `[F]` bool; False when there is none to measure."""
        self.clips.append(ClipCount(key=key, num_frames=len(valid), num_invalid=int((~valid).sum())))
        return bool(valid.any())

    def add(self, name: str, role: Role, clip: Clip) -> None:
        """Measure a subject in a clip."""
        _, measurement = self.subjects.setdefault(name, (role, Measurement(self.metrics)))
        measurement.add(clip)

    @classmethod
    def together(cls, parts: Sequence[MeasuredClips], keys: Iterable[str]) -> MeasuredClips:
        """Measurements of all clips from those of some each.

        Args:
            parts: Measurements with the same metrics, each clip in one of them.
            keys: Keys of all clips, in the order in which one process would measure them; those that no part has were
                left out.

        Raises:
            ValueError: A clip is in several parts.
        """
        whole = cls(parts[0].metrics)
        place = {key: number for number, key in enumerate(keys)}
        whole.clips = sorted((clip for part in parts for clip in part.clips), key=lambda clip: place[clip.key])
        roles: dict[str, Role] = {name: role for part in parts for name, (role, _) in part.subjects.items()}
        for name, role in roles.items():
            own = [part.subjects[name][1] for part in parts if name in part.subjects]
            whole.subjects[name] = role, Measurement.together(own, place)
        return whole


Join = Callable[[MeasuredClips], MeasuredClips]
"""Function that gets the measurements of this process's clips, and gives those of all clips."""


def joining(exchange: Callable[[MeasuredClips], list[MeasuredClips]], keys: Sequence[str]) -> Join:
    """Function that puts together what several processes have measured.

    Args:
        exchange: Gives the measurements of all processes for those of this one.
        keys: Keys of all clips, in the order in which one process would measure them.
    """
    return lambda measured: MeasuredClips.together(exchange(measured), keys)


def one_process(measured: MeasuredClips) -> MeasuredClips:
    """Measurements of a process that has all clips: a `Join`."""
    return measured
