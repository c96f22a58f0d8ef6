"""State of a worker process that its units share: one thread, and the face model of the plan, loaded once."""

from __future__ import annotations

from functools import lru_cache

from orchestration.units.unit import JobStoppedError
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.resolve import resolve_face_model


def pin_threads() -> None:
    """Let OpenCV compute on one thread: the units are the parallelism."""
    import cv2

    cv2.setNumThreads(1)


def planned_model(sha256: str) -> FaceModel:
    """The face model of the plan.

    Args:
        sha256: Hash of the model file that the plan was made with.

    Raises:
        JobStoppedError: This machine resolves another model than the one the plan was made with.
    """
    if _model().sha256 != sha256:
        raise JobStoppedError(_other_model("face model", _model().sha256, sha256))
    return _model()


def planned_detector(sha256: str) -> FaceDetector:
    """The face detector of the plan. Raises like `planned_model`."""
    if (found := _model().detector_sha256) != sha256:
        raise JobStoppedError(_other_model("face detector", found, sha256))
    return _detector()


# Loaded once per process, for all of its units; only the hash is compared with the plan of each.
@lru_cache(maxsize=1)
def _model() -> FaceModel:
    try:
        return resolve_face_model()
    except (ValueError, OSError) as error:
        raise JobStoppedError(f"a worker finds no face model: {error}") from error


@lru_cache(maxsize=1)
def _detector() -> FaceDetector:
    return FaceDetector(_model())


def _other_model(what: str, found: str, planned: str) -> str:
    return (
        f"this machine has the {what} {found[:12]}…, the plan was made with {planned[:12]}…: "
        "give every node the same file through TALKINGHEAD_MODELS"
    )
