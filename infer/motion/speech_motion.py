"""A portrait's motion from speech: what is needed is read and checked first, the models run later."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.motion.motion_edit import edited
from infer.motion.pose_source import DrivingPose, read_driving_video, read_template
from infer.portrait import Portrait
from infer.request import PoseSource, SpeechOptions, SpeechRequest
from infer.speech import Speech, read_speech
from infer.weights.speech_weights import Weights, WeightsPlace, load_audio2mesh, load_audio2pose
from talkinghead.face.model import FaceModel
from talkinghead.geometry.blendshapes import PARTS
from talkinghead.motion.expression import EXPRESSION_FILE
from talkinghead.motion.landmark_motion import LandmarkMotion
from talkinghead.rng import generator
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

NEUTRALISED = {"mouth": ("mouth",), "all": tuple(PARTS)}
"""`--neutralise` → parts of the face whose expression is taken out."""


@dataclass(frozen=True, kw_only=True)
class SpeechPlaces:
    """What is found before anything is read."""

    audio2mesh: WeightsPlace
    audio2pose: WeightsPlace | None
    template: DrivingPose | None


@dataclass(frozen=True, kw_only=True)
class SpeechInputs:
    """What moves the face, read and checked; no weights yet."""

    audio2mesh: WeightsPlace
    audio2pose: WeightsPlace | None
    speech: Speech
    driving: DrivingPose | None


@dataclass(frozen=True, kw_only=True)
class SpeechModels:
    """The models that hear."""

    mesh: Weights[Any]
    pose: Weights[Any] | None

    def provenance(self) -> dict[str, Any]:
        """For the sidecar."""
        return {w.place.kind: w.provenance() for w in (self.mesh, self.pose) if w is not None}


def find_speech_places(request: SpeechRequest, weights: Any) -> SpeechPlaces:
    """Find the models' weights in what the user gave, and read the small pose template; raises `ValueError`."""
    source = request.pose_source
    return SpeechPlaces(
        audio2mesh=request.find_audio2mesh(weights),
        audio2pose=request.find_audio2pose(weights),
        template=read_template(source.path, request.template_fps)
        if source.kind == "template" and source.path
        else None,
    )


def read_speech_inputs(
    request: SpeechRequest,
    places: SpeechPlaces,
    portrait: Portrait,
    model: FaceModel,
    progress: Progress,
    seconds: float | None,
) -> SpeechInputs:
    """Read the speech and what moves the head.

    Args:
        request: What is asked for.
        places: Found before.
        portrait: The portrait.
        model: Face model.
        progress: Told of the driving video.
        seconds: No more than this of the speech.

    Raises:
        ValueError: A file that cannot be read, or `--neutralise` without what it needs.
    """
    check_neutralise(request, places.audio2mesh, portrait)
    speech = read_speech(request.audio, seconds=seconds)
    driving = places.template or _driving_video(request.pose_source, speech.duration_s, model, progress)
    return SpeechInputs(audio2mesh=places.audio2mesh, audio2pose=places.audio2pose, speech=speech, driving=driving)


def _driving_video(source: PoseSource, seconds: float, model: FaceModel, progress: Progress) -> DrivingPose | None:
    if source.kind != "video" or source.path is None:
        return None
    frames = max(1, round(seconds * FPS))
    progress("head motion of the video", 0, frames)
    watch = functools.partial(progress, "head motion of the video", total=frames)
    return read_driving_video(source.path, seconds, model, watch)


def load_speech_models(inputs: SpeechInputs, device: str) -> SpeechModels:
    """Load the models; raises `ValueError` for damaged files."""
    return SpeechModels(
        mesh=load_audio2mesh(inputs.audio2mesh, device),
        pose=None if inputs.audio2pose is None else load_audio2pose(inputs.audio2pose, device),
    )


def speech_motion(
    request: SpeechRequest,
    inputs: SpeechInputs,
    models: SpeechModels,
    portrait: Portrait,
    progress: Progress,
    *,
    fps: float | None = None,
    compat: bool | None = None,
) -> tuple[LandmarkMotion, dict[str, Any]]:
    """Let the portrait's face speak.

    Args:
        request: What is asked for.
        inputs: Read before.
        models: Loaded.
        portrait: The portrait as it is animated (its crop).
        progress: Told how far it is.
        fps: Frame rate where the request leaves it open; None: the mesh model's.
        compat: Whether to project as AniPortrait does; None: as the mesh model's weights want it.

    Returns:
        The motion, and what was decided on the way (for the sidecar).
    """
    from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks

    compat = models.mesh.published if compat is None else compat
    pose_model = None if models.pose is None else models.pose.model
    pipeline = AudioToLandmarks(models.mesh.model, pose_model, compat=compat)
    samples = inputs.speech.samples
    rate = request.fps or fps or models.mesh.model.fps
    facts: dict[str, Any] = {"compat_projection": compat}
    pose: Any = request.pose_source.kind
    if inputs.driving is not None:
        frames = pipeline.num_frames(samples, rate)
        pose = inputs.driving.play(frames, rate, gain=request.pose_gain, smoothing=request.smooth)
        facts["interpolated_pose_frames"] = inputs.driving.interpolated
    identity = 0
    if models.pose is not None:
        identity = facts["identity"] = choose_identity(request.identity, request.seed, models.pose)
    place: dict[str, Any] = {
        "reference_mesh": _reference_mesh(request, portrait, models.mesh),
        "reference_pose_matrix": portrait.pose_matrix,
        "width": portrait.width,
        "height": portrait.height,
    }
    motion = pipeline(
        samples,
        pose=pose,
        identity=identity,
        pose_gain=request.pose_gain,
        pose_smoothing=request.smooth,
        mesh_smoothing=request.smooth_mesh,
        fps=rate,
        watch=progress,
        **place,
    )
    return edited(motion, request, compat=compat, **place), facts


def choose_identity(asked: str | None, seed: int, weights: Weights[Any]) -> int:
    """The row of the pose model's identity embedding: a speaker's name, a number, or drawn by the seed.

    What names a speaker is a name, also where it is a number. Drawn among the speakers that the model was trained on,
    where they are known.

    Raises:
        ValueError: No such name or number; says which there are.
    """
    rows = int(weights.model.config.num_identities)
    known = weights.speakers
    if asked is None:
        return int(generator(seed, "identity").integers(rows if known is None else min(rows, len(known))))
    if known is not None and asked in known:
        return known.identity(asked) % rows
    if asked.isdecimal():
        if int(asked) >= rows:
            raise ValueError(f"--identity {asked} does not exist: the pose model has 0 … {rows - 1}")
        if known is not None and int(asked) >= len(known):
            log.warning("warning: no speaker of the training had --identity %s: it moves the head by chance", asked)
        return int(asked)
    if known is None:
        raise ValueError(f"--identity {asked!r}: these weights do not name their speakers; give a number below {rows}")
    return known.identity(asked) % rows


def _reference_mesh(request: SpeechOptions, portrait: Portrait, weights: Weights[Any]) -> np.ndarray:
    """The portrait's mesh `[468, 3]`, its expression taken out where that is asked for."""
    if request.neutralise == "none":
        return portrait.mesh
    assert weights.expression is not None and portrait.face.blendshapes is not None, "checked before loading"
    return weights.expression.neutralise(portrait.mesh, portrait.face.blendshapes, NEUTRALISED[request.neutralise])


def check_neutralise(request: SpeechOptions, place: WeightsPlace, portrait: Portrait) -> None:
    """Raise `ValueError` when `--neutralise` is asked for and what it needs is not there."""
    if request.neutralise == "none":
        return
    if place.is_file or not (place.path / EXPRESSION_FILE).is_file():
        raise ValueError(
            f"--neutralise {request.neutralise} needs {EXPRESSION_FILE} beside the weights, and {place.path} has none"
            " (published weights never have): take weights of an own training, or a portrait with a closed mouth"
        )
    if portrait.face.blendshapes is None:
        raise ValueError(
            f"--neutralise {request.neutralise} needs blendshapes, which the 468-point face model does not give:"
            " put face_landmarker.task into a folder and set TALKINGHEAD_MODELS to it"
        )
