"""A short video of a validated clip: guidance images of the truth on the left, of the prediction on the right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from infer.evaluation import Trace
from talkinghead import timebase
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.media.talking_video import write_talking_video
from talkinghead.pipelines.landmark_motion import place

SIDE = 256
FRONTAL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, -30.0])
"""Pose of the head in the pictures: looking ahead, filling about two thirds of the height."""


def write_trace_video(trace: Trace, path: Path) -> None:
    """Write the video with the clip's speech.

    A mesh is shown under a still head, a pose under a still face; frames without a face are black on the left.
    """
    predicted = next(iter(trace.predictions.values()))
    frames = (np.hstack(pair) for pair in zip(_drawn(trace, trace.true), _drawn(trace, predicted), strict=True))
    write_talking_video(path, frames, width=2 * SIDE, height=SIDE, fps=timebase.FPS, speech=trace.clip.audio)


def _drawn(trace: Trace, values: np.ndarray) -> Iterator[np.ndarray]:
    for value in values:
        if not np.isfinite(value).all():
            yield np.zeros((SIDE, SIDE, 3), np.uint8)
            continue
        mesh, pose = (value, np.zeros(6)) if trace.kind == "mesh" else (mean_face().vertices, value)
        motion = place(
            mesh[None],
            pose[None],
            reference_pose_matrix=matrix_from_pose(FRONTAL),
            width=SIDE,
            height=SIDE,
            fps=timebase.FPS,
        )
        yield draw_guidance(motion.landmarks[0], SIDE, SIDE)
