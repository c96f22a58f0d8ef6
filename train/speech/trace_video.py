"""A short video of a validated clip: guidance images of the truth on the left, of the prediction on the right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from infer.evaluation.motion_evaluation import Trace
from talkinghead import timebase
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.geometry.projection import project, transform
from talkinghead.media.talking_video import write_talking_video

SIDE = 256
FRONTAL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, -30.0])
"""Pose of the head in the pictures: looking ahead, filling about two thirds of the height."""


def write_trace_video(trace: Trace, path: Path) -> None:
    """Write the video with the clip's speech.

    A mesh is shown under a still head, a pose under a still face. Frames without a face are black on the left; so are
    those on the right in which a model that has diverged puts the head behind the camera.
    """
    predicted = next(iter(trace.predictions.values()))
    frames = (np.hstack(pair) for pair in zip(_drawn(trace, trace.true), _drawn(trace, predicted), strict=True))
    write_talking_video(path, frames, width=2 * SIDE, height=SIDE, fps=timebase.FPS, speech=trace.clip.audio)


def _drawn(trace: Trace, values: np.ndarray) -> Iterator[np.ndarray]:
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    for value in values:
        if not np.isfinite(value).all():
            yield black
            continue
        mesh, pose = (value, np.zeros(6)) if trace.kind == "mesh" else (mean_face().vertices, value)
        matrix = matrix_from_pose(FRONTAL) @ matrix_from_pose(pose)
        in_front = bool((transform(mesh, matrix)[:, 2] < 0).all())
        yield draw_guidance(project(mesh, matrix, SIDE, SIDE) / SIDE, SIDE, SIDE) if in_front else black
