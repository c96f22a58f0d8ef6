"""The commands of `python -m infer`: each a function whose arguments are its options, returning its result."""

from __future__ import annotations

import tyro

from infer.batch.rows import BatchRequest
from infer.convert import ConvertRequest
from infer.doctor import DoctorRequest
from infer.dubbing.request import DubRequest
from infer.evaluation.evaluate_request import EvaluateRequest
from infer.request import AnimateRequest, AudioRequest, LandmarkRequest, VideoRequest
from talkinghead.runtime.command_line import Incomplete

# Options are named after the field alone: `--reference`, not `--request.reference`.
Flat = tyro.conf.OmitArgPrefixes


# Each command imports its code when it is called: `--help` and wrong options answer without loading PyTorch.


def animate(request: Flat[AnimateRequest]) -> str:
    """Let any driver, or one for each part of the face, move a portrait, shown by any renderer."""
    from infer.animate import make_animation

    return str(make_animation(request))


def pairs() -> str:
    """Print which drivers go with which renderers, and what each pair loses; other packages' included."""
    from infer.pairs import pairs_table

    return pairs_table()


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
    from infer.animate import make_landmark_video

    return str(make_landmark_video(request))


def dub(request: Flat[DubRequest]) -> str:
    """Put new speech into a video's mouth; its head, eyes and background stay; with landmark video and sidecar."""
    from infer.dubbing.dub import dub as make_dubbed_video

    return str(make_dubbed_video(request))


def batch(request: Flat[BatchRequest]) -> str | Incomplete:
    """Make many videos from a table or two folders, with weights loaded once; goes on where it was stopped."""
    from infer.batch.run import run_batch

    return run_batch(request)


def convert(request: Flat[ConvertRequest]) -> str:
    """Convert published files into a folder of weights, checking every key; or put trainings into one folder."""
    from infer.convert import convert_weights

    return str(convert_weights(request))


def doctor(request: Flat[DoctorRequest]) -> str:
    """Report what this machine has, which weights are found, and what a request would cost in time and memory."""
    from infer.doctor import diagnose

    return diagnose(request)


def evaluate(request: Flat[EvaluateRequest]) -> str | Incomplete:
    """Measure weights, or pairs of a driver and a renderer, on a split's clips, with baselines next to every number."""
    from infer.evaluation.split_evaluation import evaluate_and_write

    return evaluate_and_write(request)
