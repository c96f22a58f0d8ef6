"""The commands of `python -m infer`: each a function whose arguments are its options, returning its result."""

from __future__ import annotations

import tyro

from infer.convert import ConvertRequest
from infer.doctor import DoctorRequest
from infer.evaluation.evaluate_request import EvaluateRequest
from infer.request import AudioRequest, LandmarkRequest, VideoRequest

# Options are named after the field alone: `--reference`, not `--request.reference`.
Flat = tyro.conf.OmitArgPrefixes


# Each command imports its code when it is called: `--help` and wrong options answer without loading PyTorch.


def audio(request: Flat[AudioRequest]) -> str:
    """Let a portrait speak: make a video from an image and speech; next to it the landmark video and a sidecar."""
    from infer.animate import make_audio_video

    return str(make_audio_video(request))


def video(request: Flat[VideoRequest]) -> str:
    """Let a portrait follow the face in a video, with its sound; next to it the landmark video and a sidecar."""
    from infer.animate import make_driven_video

    return str(make_driven_video(request))


def landmarks(request: Flat[LandmarkRequest]) -> str:
    """Animate a portrait's landmarks from speech: the drawn video with the speech, and the arrays next to it."""
    from infer.landmarks import make_landmark_video

    return str(make_landmark_video(request))


def convert(request: Flat[ConvertRequest]) -> str:
    """Convert published files into a folder of weights, checking every key; or put trainings into one folder."""
    from infer.convert import convert_weights

    return str(convert_weights(request))


def doctor(request: Flat[DoctorRequest]) -> str:
    """Report what this machine has, which weights are found, and what a request would cost in time and memory."""
    from infer.doctor import diagnose

    return diagnose(request)


def evaluate(request: Flat[EvaluateRequest]) -> str:
    """Measure weights on the annotated clips of a split, with baselines next to every number; prints the table."""
    from infer.evaluation.split_evaluation import evaluate_and_write

    return evaluate_and_write(request)
