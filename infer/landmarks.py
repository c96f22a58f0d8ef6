"""`infer landmarks`: a portrait and speech in, the drawn landmark video, its arrays and its sidecar out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from infer.frame_size import video_size
from infer.motion.speech_motion import (
    SpeechInputs,
    find_speech_places,
    load_speech_models,
    read_speech_inputs,
    speech_motion,
)
from infer.output_files import check_target, companions, write_outputs
from infer.portrait import MANY_OUTSIDE, Portrait, read_portrait
from infer.request import LandmarkRequest, SpeechRequest
from infer.sidecar import describe_portrait, describe_speech, sidecar
from talkinghead.face.model import FaceModel
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable
from talkinghead.provenance import hash_file
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)


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
        check_target(request.output, *speech_files(request))
        places = find_speech_places(request, request.weights)
        for target in (request.output, *companions(request.output)):
            check_writable(target)
        progress("read inputs", 0, 1)
        model = resolve_face_model()
        portrait = read_portrait(request.reference, model, face=request.face)
        size = video_size(portrait.width, portrait.height, request.width, request.height)
        warn_of_portrait(request.reference, portrait)
        inputs = read_speech_inputs(request, places, portrait, model, progress, request.limit_seconds)

        progress("load weights", 0, 1)
        device = choose_device(request.device)
        models = load_speech_models(inputs, device)
        motion, facts = speech_motion(request, inputs, models, portrait, progress)

        def describe() -> dict[str, Any]:
            progress("write", 0, 1)
            return sidecar(
                "landmarks",
                request,
                inputs=describe_speech_inputs(request, inputs, portrait, model),
                weights=models.provenance(),
                result=facts | {"frames": len(motion), "fps": motion.fps, "size": size},
                seconds={**progress.seconds, "all": time.monotonic() - started},
                device=device,
            )

        width, height = size
        write_outputs(
            request.output, motion, request.audio, width=width, height=height, describe=describe, watch=progress
        )
    return request.output


def speech_files(request: SpeechRequest) -> list[Path]:
    """Files of the user that an output must not replace."""
    source = request.pose_source
    return [request.reference, request.audio, *([source.path] if source.path else [])]


def warn_of_portrait(path: Path, portrait: Portrait) -> None:
    """Say what is odd about a portrait that can be animated nevertheless."""
    if portrait.face.outside > MANY_OUTSIDE:
        log.warning(
            "warning: the face in %s is cut by the picture's border (%.0f %% of its landmarks lie outside, where they"
            " are guessed): a portrait with the whole face moves better",
            path,
            100 * portrait.face.outside,
        )


def describe_speech_inputs(
    request: SpeechRequest, inputs: SpeechInputs, portrait: Portrait, model: FaceModel
) -> dict[str, Any]:
    """What was read for a video from speech, for the sidecar."""
    found = {
        "reference": describe_portrait(request.reference, portrait, model.sha256),
        "audio": describe_speech(request.audio, inputs.speech),
    }
    if request.pose_source.path is not None:
        found["pose"] = {"sha256": hash_file(request.pose_source.path)}
    return found
