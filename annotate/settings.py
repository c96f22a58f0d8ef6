"""Settings of the annotate job."""

from __future__ import annotations

from dataclasses import dataclass

from annotate.engines import DEFAULT_ENGINE, ENGINES


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """Settings of the annotate job. All of them are part of the provenance key, next to the face model."""

    engine: str = DEFAULT_ENGINE
    """Landmark engine: `litert`, `litert-tracking`, `tasks` or `tasks-image` (see `annotate.engines`)."""
    detector_every: int = 5
    """Frames from one pass of the separate face detector to the next. The detector counts the faces and finds where to
    measure sharpness and brightness; in between, its result is kept. In 5 frames (0.2 s) a face moves a few pixels."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"no landmark engine {self.engine!r}; there are {', '.join(ENGINES)}")
        if self.detector_every < 1:
            raise ValueError(f"detector_every is {self.detector_every}, must be at least 1 (1: every frame)")
