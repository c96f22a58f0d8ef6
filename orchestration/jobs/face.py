"""The face model and networks of a worker process, loaded once."""

from __future__ import annotations

from functools import lru_cache

from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.resolve import resolve_face_model


@lru_cache(maxsize=1)
def planned_model(sha256: str) -> FaceModel:
    """The face model of the plan.

    Raises:
        ValueError: This machine resolves another model than the one the plan was made with.
    """
    model = resolve_face_model()
    if model.sha256 != sha256:
        raise ValueError(
            f"this machine has the face model {model.name} ({model.sha256[:12]}…), the plan was made with {sha256[:12]}…: "
            "give every node the same file through TALKINGHEAD_MODELS"
        )
    return model


@lru_cache(maxsize=1)
def planned_detector(sha256: str) -> FaceDetector:
    """The face detector of the plan's model."""
    return FaceDetector(planned_model(sha256))


def pin_threads() -> None:
    """One thread for OpenCV: the units are the parallelism."""
    import cv2

    cv2.setNumThreads(1)
