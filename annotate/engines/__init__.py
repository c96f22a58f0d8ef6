"""Landmark engines: `tasks` (MediaPipe Tasks) and `litert` (the same networks, run directly)."""

from __future__ import annotations

from annotate.landmarks import LandmarkEngine
from talkinghead.face.model import FaceModel

ENGINES = ("litert", "tasks")
DEFAULT_ENGINE = "litert"


def make_engine(name: str, model: FaceModel) -> LandmarkEngine:
    """The engine called `name`, ready for any number of clips.

    Raises:
        ValueError: No such engine, or it cannot run this model.
    """
    if name == "litert":
        from annotate.engines.litert import LitertEngine

        return LitertEngine(model)
    if name == "tasks":
        from annotate.engines.tasks import TasksEngine

        return TasksEngine(model)
    raise ValueError(f"no landmark engine {name!r}; there are {', '.join(ENGINES)}")
