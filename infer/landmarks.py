"""`infer landmarks`: animate a portrait's landmarks by speech; write the drawn video, its arrays and its sidecar."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from infer.framing import video_size
from infer.motion.speech_motion import DrivingSpeech
from infer.output_files import Pair, check_target, landmark_companions, sidecar, write_landmarks
from infer.portrait import describe_portrait, read_portrait
from infer.portrait_checks import warn_of_portrait
from infer.request import LandmarkRequest
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.progress import Progress


def make_landmark_video(request: LandmarkRequest) -> Path:
    """Animate a portrait's landmarks by speech, and write the video and its companion files.

    Everything the user gave is read and checked before weights are loaded.

    Args:
        request: Options of the command.

    Returns:
        Path of the video.

    Raises:
        ValueError: The request cannot be met; one line that says what is wrong and what to do.
        OSError: The disk is full, or the output's folder cannot be written.
    """
    request.check()
    started = time.monotonic()
    driving = DrivingSpeech(request)
    with Progress() as progress:
        # Cheap checks first: names, places, and whether the weights are there.
        companions = landmark_companions(request.output)
        check_target(request.output, companions, request.reference, *driving.files)
        driving.find(request.weights)
        for target in (request.output, *companions):
            check_writable(target)

        # Content of the inputs: the portrait, the speech, and the source of the head's motion.
        progress("read inputs", 0, 1)
        model = resolve_face_model()
        portrait = read_portrait(request.reference, model, face=request.face)
        size = video_size(portrait.width, portrait.height, request.width, request.height)
        warn_of_portrait(request.reference, portrait, model, keeps_mouth=request.neutralise == "none")
        driving.read(portrait, model, progress, request.limit_seconds)

        # The motion. There is no image pipeline here, so the mesh model decides frame rate and projection.
        progress("load weights", 0, 1)
        device = choose_device(request.device)
        motion, facts = driving.move(portrait, progress, device=device)
        compat = driving.published

        def describe() -> dict[str, Any]:
            # Called when video and arrays are written: wall times and peak memory are known only then.
            progress("write", 0, 1)
            return sidecar(
                "landmarks",
                request,
                pair=Pair.of("landmarks", fps=motion.fps, compat=compat),
                inputs={"reference": describe_portrait(request.reference, portrait, model.sha256)} | driving.describe(),
                weights=driving.provenance(),
                result=facts | {"frames": len(motion), "fps": motion.fps, "compat_projection": compat, "size": size},
                seconds={**progress.seconds, "all": time.monotonic() - started},
                device=device,
            )

        # The files, drawn frame by frame, and put in place together.
        write_landmarks(
            request.output,
            motion,
            motion.landmarks(compat=compat),
            reference_pose_matrix=portrait.pose_matrix,
            size=size,
            sound=request.audio,
            describe=describe,
            progress=progress,
        )
    return request.output
