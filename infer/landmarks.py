"""`infer landmarks`: a portrait and speech in, the drawn landmark video, its arrays and its sidecar out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from infer.framing import video_size
from infer.motion.speech_motion import DrivingSpeech
from infer.output_files import check_target, landmark_companions, sidecar, write_landmarks
from infer.portrait import describe_portrait, read_portrait, warn_of_portrait
from infer.request import LandmarkRequest
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.progress import Progress


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
    driving = DrivingSpeech(request)
    with Progress() as progress:
        # What can be checked without reading much: names, places, weights that are not loaded yet.
        companions = landmark_companions(request.output)
        check_target(request.output, companions, request.reference, *driving.files)
        driving.find(request.weights)
        for target in (request.output, *companions):
            check_writable(target)

        # The portrait, the speech, and what moves the head.
        progress("read inputs", 0, 1)
        model = resolve_face_model()
        portrait = read_portrait(request.reference, model, face=request.face)
        size = video_size(portrait.width, portrait.height, request.width, request.height)
        warn_of_portrait(request.reference, portrait)
        driving.read(portrait, model, progress, request.limit_seconds)

        # The motion, in the mesh model's own frame rate and projection.
        progress("load weights", 0, 1)
        device = choose_device(request.device)
        motion, facts = driving.move(portrait, progress, device=device)

        def describe() -> dict[str, Any]:
            progress("write", 0, 1)
            return sidecar(
                "landmarks",
                request,
                inputs={"reference": describe_portrait(request.reference, portrait, model.sha256)} | driving.describe(),
                weights=driving.provenance(),
                result=facts | {"frames": len(motion), "fps": motion.fps, "size": size},
                seconds={**progress.seconds, "all": time.monotonic() - started},
                device=device,
            )

        # The files.
        write_landmarks(request.output, motion, size=size, sound=request.audio, describe=describe, progress=progress)
    return request.output
