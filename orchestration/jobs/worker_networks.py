"""The face model and networks of a worker process, loaded once."""

from __future__ import annotations

from functools import lru_cache

from orchestration.units.unit import RunError
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.resolve import resolve_face_model
from talkinghead.models.image.codec import PictureEncoder


@lru_cache(maxsize=1)
def _model() -> FaceModel:
    try:
        return resolve_face_model()
    except (ValueError, OSError) as error:
        raise RunError(f"a worker finds no face model: {error}") from error


@lru_cache(maxsize=1)
def _detector() -> FaceDetector:
    return FaceDetector(_model())


def planned_model(sha256: str) -> FaceModel:
    """The face model of the plan.

    Raises:
        RunError: This machine resolves another model than the one the plan was made with.
    """
    if _model().sha256 != sha256:
        raise RunError(_other_model("face model", _model().sha256, sha256))
    return _model()


def planned_detector(sha256: str) -> FaceDetector:
    """The face detector of the plan. Raises like `planned_model`."""
    if (found := _model().detector_sha256) != sha256:
        raise RunError(_other_model("face detector", found, sha256))
    return _detector()


def _other_model(what: str, found: str, planned: str) -> str:
    return (
        f"this machine has the {what} {found[:12]}…, the plan was made with {planned[:12]}…: "
        "give every node the same file through TALKINGHEAD_MODELS"
    )


def pin_threads() -> None:
    """One thread for OpenCV: the units are the parallelism."""
    import cv2

    cv2.setNumThreads(1)


@lru_cache(maxsize=1)
def _encoder(vae: str, image_encoder: str, device: str) -> PictureEncoder:
    import torch

    torch.set_num_threads(1)  # the units are the parallelism
    try:
        encoder = PictureEncoder.load(vae, image_encoder)
    except (ValueError, OSError) as error:
        raise RunError(f"a worker cannot load the picture networks: {error}") from error
    except (MemoryError, RuntimeError) as error:
        raise RunError(
            f"the picture networks do not fit a worker's memory (--memory-gb gives more): {error}"
        ) from error
    return encoder.to(device)


def planned_encoder(vae: str, image_encoder: str, sha256: dict[str, str], device: str) -> PictureEncoder:
    """The picture networks of the plan.

    Args:
        vae: Their sources, see `PictureEncoder.load`.
        image_encoder: See there.
        sha256: Network → hash that it had when the plan was made.
        device: Where they run.

    Raises:
        RunError: This machine does not find them, or finds others.
    """
    encoder = _encoder(vae, image_encoder, device)
    for name, about in encoder.provenance().items():
        if about["sha256"] != sha256[name]:
            raise RunError(
                f"this machine has the {name} {about['sha256'][:12]}…, the plan was made with {sha256[name][:12]}…:"
                " give every node the same weights in the same place, and the same versions of the libraries"
            )
    return encoder
