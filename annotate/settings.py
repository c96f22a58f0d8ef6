"""What shapes an annotation, beside the model."""

from __future__ import annotations

from dataclasses import dataclass

from annotate.engines import DEFAULT_ENGINE, ENGINES

ANNOTATE_VERSION = 1
"""Version of the job's code in provenance keys; raised when the same frames would give other columns."""


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """Parameters of the annotate job. All of them are part of the provenance key."""

    engine: str = DEFAULT_ENGINE
    """Landmark engine: `litert` or `tasks`."""
    detector_every: int = 5
    """Frames from one pass of the separate face detector to the next. It counts the faces, finds where to measure
    sharpness and brightness, and is held in between; 5 frames are 0.2 s, in which a face moves a few pixels."""
    detector_min_score: float = 0.5
    """Lowest detector score that counts as a face, 0 .. 1. MediaPipe's own default."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"no landmark engine {self.engine!r}; there are {', '.join(ENGINES)}")
        if self.detector_every < 1:
            raise ValueError(f"detector_every is {self.detector_every}, must be at least 1 (1: every frame)")
        if not 0 < self.detector_min_score < 1:
            raise ValueError(f"detector_min_score is {self.detector_min_score}, must lie between 0 and 1")
