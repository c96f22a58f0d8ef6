"""Validation of models from speech: the same clips at every step, held-out ones first."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from infer.evaluation.evaluation_result import write_evaluations
from infer.evaluation.motion_evaluation import COLUMNS, ClipCallback, Evaluation, Kind, Trace
from shards.order import spread
from shards.reader import Sample
from talkinghead import timebase
from talkinghead.geometry.camera import project, transform
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.media.talking_video import write_talking_video
from train.audio2lmk.corpus import Corpus
from train.run.plots import ValidationFigures

log = logging.getLogger(__name__)

HELD_OUT, TRAINING = "held-out clips", "training clips"
SIDE = 256
"""Width and height of each half of a video in pixels."""
FRONTAL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, -30.0])
"""Pose of the head in the videos (degrees, cm): frontal, filling about two thirds of the height."""


class Evaluate(Protocol):
    """Function that measures clips."""

    def __call__(self, samples: Sequence[Sample], *, held_out: bool, on_clip: ClipCallback) -> Evaluation:
        """Measure clips; `on_clip` gets each of them and draws; see `infer.evaluation.motion_evaluation`."""
        ...


def validate_clips(corpus: Corpus, kind: Kind, count: int, folder: Path, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate clips, draw them, and write the numbers.

    Args:
        corpus: Clips of the run.
        kind: Kind of motion that is predicted.
        count: Number of clips of each split.
        folder: Folder for `validation.json`, its table, plots and videos (of held-out clips).
        evaluate: Function that measures clips.

    Returns:
        Figures to log, such as `held-out/mesh_l1`.
    """
    evaluations: dict[str, Evaluation] = {}
    for title, samples in _chosen(corpus, COLUMNS[kind], count).items():
        # Plots of both groups, videos of held-out clips only: those are the ones to watch.
        held_out = title == HELD_OUT
        figures = ValidationFigures(folder / _short(title), write_trace_video if held_out else None)
        evaluations[title] = evaluate(samples, held_out=held_out, on_clip=figures)
    write_evaluations(folder, evaluations)
    return {
        f"{_short(title)}/{name}": value
        for title, evaluation in evaluations.items()
        for name, value in evaluation.numbers().items()
    }


def _chosen(corpus: Corpus, columns: Sequence[str], count: int) -> dict[str, list[Sample]]:
    """Groups of clips by title: `count` from all over the `val` split, and as many of the training split."""
    chosen: dict[str, list[Sample]] = {}
    for title, split in ((HELD_OUT, "val"), (TRAINING, "train")):
        reader = corpus.reader(columns, split)
        chosen[title] = [reader[number] for number in spread(len(reader), count)]
    if not chosen[HELD_OUT]:
        log.warning("the data set has no clip with speech in its val split: only training clips are validated")
        del chosen[HELD_OUT]
    return chosen


def _short(title: str) -> str:
    return title.split()[0]


def write_trace_video(trace: Trace, path: Path) -> None:
    """Write a video of a clip, the truth on the left and the prediction on the right, with the clip's speech.

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
        # Only one of the two was predicted; the other is the mean face, or a still head.
        mesh, pose = (value, np.zeros(6)) if trace.kind == "mesh" else (mean_face().vertices, value)
        matrix = matrix_from_pose(FRONTAL) @ matrix_from_pose(pose)
        # The camera looks down -z: points with z of 0 or more cannot be projected.
        in_front = bool((transform(mesh, matrix)[:, 2] < 0).all())
        yield draw_guidance(project(mesh, matrix, SIDE, SIDE) / SIDE, SIDE, SIDE) if in_front else black
