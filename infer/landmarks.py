"""`infer landmarks`: a portrait and speech in, the drawn landmark video, its arrays and its sidecar out."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.portrait import MANY_OUTSIDE, Portrait, read_portrait
from infer.pose_source import DrivingPose, PoseSource, read_driving_video, read_template
from infer.progress import Progress
from infer.request import LandmarkRequest
from infer.speech import Speech, read_speech
from infer.video_file import check_target, companions, video_size, write_outputs
from infer.weights import EXPRESSION_FILE, Weights, WeightsPlace, load_audio2mesh, load_audio2pose
from talkinghead.face.model import FaceModel
from talkinghead.face.resolve import resolve_face_model
from talkinghead.geometry.blendshapes import PARTS
from talkinghead.provenance import hash_file, library_versions
from talkinghead.rng import generator
from talkinghead.staging import check_writable
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

NEUTRALISED = {"mouth": ("mouth",), "all": tuple(PARTS)}
"""`--neutralise` → parts of the face whose expression is taken out."""
_LIBRARIES = ("talkinghead", "torch", "transformers", "diffusers", "numpy", "opencv-contrib-python", "av")


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What the user gave, read and checked; no weights yet."""

    size: tuple[int, int]
    portrait: Portrait
    face_model: str
    speech: Speech
    driving: DrivingPose | None
    audio2mesh: WeightsPlace
    audio2pose: WeightsPlace | None


def make_landmark_video(request: LandmarkRequest) -> Path:
    """Do what the request asks for.

    Everything the user gave is read and checked before weights are loaded.

    Returns:
        The video's path.

    Raises:
        ValueError: Something that was asked for is not possible; one line that says what and what to do.
        OSError: The disk is full, or the output's folder cannot be written.
    """
    request.check()
    started = time.monotonic()
    with Progress() as progress:
        inputs = _read_inputs(request, progress)
        progress("load weights", 0, 1)
        device = _device(request.device)
        mesh_weights = load_audio2mesh(inputs.audio2mesh, device)
        pose_weights = None if inputs.audio2pose is None else load_audio2pose(inputs.audio2pose, device)
        motion, facts = _animate(request, inputs, mesh_weights, pose_weights, progress)

        def describe() -> dict[str, Any]:
            progress("write", 0, 1)
            seconds = {**progress.seconds, "all": time.monotonic() - started}
            return {
                "command": "landmarks",
                "settings": dataclasses.asdict(request),
                "inputs": _describe_inputs(request, inputs),
                "weights": {w.place.kind: w.provenance() for w in (mesh_weights, pose_weights) if w is not None},
                "result": facts | {"frames": len(motion), "fps": motion.fps, "size": inputs.size, "device": device},
                "libraries": library_versions(*_LIBRARIES),
                "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            }

        width, height = inputs.size
        write_outputs(
            request.output,
            motion,
            request.audio,
            width=width,
            height=height,
            describe=describe,
            watch=progress,
        )
    return request.output


def _read_inputs(request: LandmarkRequest, progress: Progress) -> _Inputs:
    """Cheap checks first, then the portrait, the speech, and what moves the head."""
    source = request.pose_source
    check_target(request.output, request.reference, request.audio, *([source.path] if source.path else []))
    audio2mesh, audio2pose = request.find_audio2mesh(), request.find_audio2pose()
    for target in (request.output, *companions(request.output)):
        check_writable(target)
    template = read_template(source.path, request.template_fps) if source.kind == "template" and source.path else None

    progress("read inputs", 0, 1)
    model = resolve_face_model()
    portrait = read_portrait(request.reference, model, face=request.face)
    size = video_size(portrait.width, portrait.height, request.width, request.height)
    if portrait.face.outside > MANY_OUTSIDE:
        log.warning(
            "warning: the face in %s is cut by the picture's border (%.0f %% of its landmarks lie outside, where they"
            " are guessed): a portrait with the whole face moves better",
            request.reference,
            100 * portrait.face.outside,
        )
    _check_neutralise(request, audio2mesh, portrait)
    speech = read_speech(request.audio)
    return _Inputs(
        size=size,
        portrait=portrait,
        face_model=model.sha256,
        speech=speech,
        driving=template or _driving_video(source, speech.duration_s, model, progress),
        audio2mesh=audio2mesh,
        audio2pose=audio2pose,
    )


def _driving_video(source: PoseSource, seconds: float, model: FaceModel, progress: Progress) -> DrivingPose | None:
    if source.kind != "video" or source.path is None:
        return None
    frames = max(1, round(seconds * FPS))
    progress("head motion of the video", 0, frames)
    watch = functools.partial(progress, "head motion of the video", total=frames)
    return read_driving_video(source.path, seconds, model, watch)


def _animate(
    request: LandmarkRequest,
    inputs: _Inputs,
    mesh_weights: Weights[Any],
    pose_weights: Weights[Any] | None,
    progress: Progress,
) -> tuple[Any, dict[str, Any]]:
    """The motion, and what was decided on the way."""
    from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks

    pose_model = None if pose_weights is None else pose_weights.model
    pipeline = AudioToLandmarks(mesh_weights.model, pose_model, compat=mesh_weights.published)
    samples = inputs.speech.samples
    rate = request.fps or mesh_weights.model.fps
    facts: dict[str, Any] = {"compat_projection": mesh_weights.published}
    pose: Any = request.pose_source.kind
    if inputs.driving is not None:
        pose = inputs.driving.play(
            pipeline.num_frames(samples, rate), rate, gain=request.pose_gain, smoothing=request.smooth
        )
        facts["interpolated_pose_frames"] = inputs.driving.interpolated
    identity = 0
    if pose_weights is not None:
        identity = facts["identity"] = choose_identity(request.identity, request.seed, pose_weights)
    motion = pipeline(
        samples,
        reference_mesh=_reference_mesh(request, inputs.portrait, mesh_weights),
        reference_pose_matrix=inputs.portrait.pose_matrix,
        width=inputs.portrait.width,
        height=inputs.portrait.height,
        pose=pose,
        identity=identity,
        pose_gain=request.pose_gain,
        pose_smoothing=request.smooth,
        mesh_smoothing=request.smooth_mesh,
        fps=rate,
        watch=progress,
    )
    return motion, facts


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


def _reference_mesh(request: LandmarkRequest, portrait: Portrait, weights: Weights[Any]) -> np.ndarray:
    """The portrait's mesh `[468, 3]`, its expression taken out where that is asked for."""
    if request.neutralise == "none":
        return portrait.mesh
    assert weights.expression is not None and portrait.face.blendshapes is not None, "checked before loading"
    return weights.expression.neutralise(portrait.mesh, portrait.face.blendshapes, NEUTRALISED[request.neutralise])


def _check_neutralise(request: LandmarkRequest, place: WeightsPlace, portrait: Portrait) -> None:
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


def _describe_inputs(request: LandmarkRequest, inputs: _Inputs) -> dict[str, Any]:
    portrait, speech, source = inputs.portrait, inputs.speech, request.pose_source
    found: dict[str, Any] = {
        "reference": {
            "sha256": hash_file(request.reference),
            "size": [portrait.width, portrait.height],
            "face": [round(value, 5) for value in portrait.face.extent],
            "face_model": inputs.face_model,
        },
        "audio": {
            "sha256": hash_file(request.audio),
            "seconds": round(speech.duration_s, 6),
            "silent": speech.silent,
        },
    }
    if source.path is not None:
        found["pose"] = {"sha256": hash_file(source.path)}
    return found


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here; take --device cpu")
    return "cuda" if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"
