"""Validation of models from speech: the same clips at every step, held-out ones first."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from infer.evaluation.evaluation_result import write_evaluations
from infer.evaluation.measured_clips import Join, joining
from infer.evaluation.motion_evaluation import (
    ClipCallback,
    Evaluation,
    Trace,
    TrueClip,
    evaluate_mesh,
    evaluate_pose,
    read_clips,
)
from shards.order import spread
from shards.reader import Sample
from talkinghead import timebase
from talkinghead.geometry.camera import project, transform
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.media.talking_video import write_talking_video
from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.speech.encoder import normalise
from talkinghead.motion.annotated import MOTION_COLUMNS
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.speakers import identity_of
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from train.audio2lmk.corpus import Corpus
from train.run.crew import ONE, Crew
from train.run.plots import MOST_SHOWN, ValidationFigures

log = logging.getLogger(__name__)

HELD_OUT, TRAINING = "held-out clips", "training clips"
SIDE = 256
"""Width and height of each half of a video in pixels."""
FRONTAL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, -30.0])
"""Pose of the head in the videos (degrees, cm): frontal, filling about two thirds of the height."""


class Evaluate(Protocol):
    """Function that measures clips."""

    def __call__(self, samples: Sequence[Sample], *, held_out: bool, on_clip: ClipCallback, join: Join) -> Evaluation:
        """Measure clips; `on_clip` gets each of them and draws, `join` puts the measurements together.

        See `infer.evaluation.motion_evaluation`.
        """
        ...


def validate_mesh(model: Audio2Mesh, corpus: Corpus, count: int, folder: Path, crew: Crew = ONE) -> dict[str, float]:
    """Evaluate a mesh model on whole clips; arguments and result are those of `validate_clips`.

    Args:
        model: Model on its device.
        corpus: Clips of the run.
        count: Number of clips of each split.
        folder: Folder for what is written.
        crew: Processes that share the clips out.
    """
    pipeline = AudioToLandmarks(model)
    speakers = corpus.speakers

    def predict(clip: TrueClip) -> np.ndarray:
        return pipeline.predict_offsets(clip.audio)

    def evaluate(samples: Sequence[Sample], *, held_out: bool, on_clip: ClipCallback, join: Join) -> Evaluation:
        # The neutral mesh of a held-out speaker is estimated from the clip, as users would take it from a portrait.
        known = None if held_out else lambda speaker: speakers[speaker].neutral.mesh
        return evaluate_mesh(
            predict,
            read_clips(samples, neutral=known),
            mean_offset=speakers.mean_offset,
            known_neutral=not held_out,
            on_clip=on_clip,
            join=join,
        )

    return validate_clips(corpus, count, folder, evaluate, crew)


def validate_pose(
    model: Audio2Pose,
    corpus: Corpus,
    origin: Literal["rest", "first"],
    count: int,
    folder: Path,
    crew: Crew = ONE,
) -> dict[str, float]:
    """Evaluate a pose model on whole clips; arguments and result are those of `validate_clips`.

    Args:
        model: Model on its device.
        corpus: Clips of the run.
        origin: Origin of the model's poses, see `talkinghead.motion.rest_pose.pose_origin`.
        count: Number of clips of each split.
        folder: Folder for what is written.
        crew: Processes that share the clips out.
    """
    pipeline = AudioToLandmarks(None, model)

    def identity(clip: TrueClip) -> int:
        return identity_of(clip.speaker, corpus.speakers, model.id_embed.num_embeddings)

    # As users get it: the decoder sees its own poses.
    def free_running(clip: TrueClip) -> np.ndarray:
        return pipeline.predict_pose(clip.audio, identity=identity(clip))

    # As in training, but without noise: the decoder sees the true poses.
    @torch.inference_mode()
    def teacher_forced(clip: TrueClip, previous: np.ndarray) -> np.ndarray:
        samples = normalise(torch.from_numpy(clip.audio))[None].to(model.device)
        known = torch.from_numpy(previous).float()[None].to(model.device)
        row = torch.tensor([identity(clip)], device=model.device)
        return model(samples, known, row).float()[0].cpu().numpy()

    def evaluate(samples: Sequence[Sample], *, held_out: bool, on_clip: ClipCallback, join: Join) -> Evaluation:
        del held_out  # poses are relative to each clip's own origin
        return evaluate_pose(
            free_running,
            read_clips(samples),
            teacher_forced=teacher_forced,
            mean_pose=np.array(corpus.statistics.pose_mean),
            origin=origin,
            on_clip=on_clip,
            join=join,
        )

    return validate_clips(corpus, count, folder, evaluate, crew)


def validate_clips(corpus: Corpus, count: int, folder: Path, evaluate: Evaluate, crew: Crew = ONE) -> dict[str, float]:
    """Evaluate clips, draw them, and write the numbers.

    Args:
        corpus: Clips of the run.
        count: Number of clips of each split.
        folder: Folder for `validation.json`, its table, plots and videos (of held-out clips).
        evaluate: Function that measures clips.
        crew: Processes that share the clips out.

    Returns:
        Figures to log, such as `held-out/mesh_l1`.
    """
    evaluations: dict[str, Evaluation] = {}
    before = 0
    for title, samples in _chosen(corpus, count).items():
        # Plots of both groups, videos of held-out clips only: those are the ones to watch. Of this process's clips
        # those are shown that are among the first of all.
        held_out = title == HELD_OUT
        most = len(crew.own(samples[:MOST_SHOWN], before))
        figures = ValidationFigures(folder / _short(title), write_trace_video if held_out else None, most)
        evaluations[title] = evaluate(
            crew.own(samples, before),
            held_out=held_out,
            on_clip=figures,
            join=joining(crew.exchange, [sample.key for sample in samples]),
        )
        before += len(samples)
    if crew.first:
        write_evaluations(folder, evaluations)
    return {
        f"{_short(title)}/{name}": value
        for title, evaluation in evaluations.items()
        for name, value in evaluation.numbers().items()
    }


def _chosen(corpus: Corpus, count: int) -> dict[str, list[Sample]]:
    """Groups of clips by title: `count` from all over the `val` split, and as many of the training split."""
    chosen: dict[str, list[Sample]] = {}
    for title, split in ((HELD_OUT, "val"), (TRAINING, "train")):
        reader = corpus.reader(MOTION_COLUMNS, split)
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
        matrix = placed_pose(pose, matrix_from_pose(FRONTAL))
        # The camera looks down -z: points with z of 0 or more cannot be projected.
        in_front = bool((transform(mesh, matrix)[:, 2] < 0).all())
        yield draw_guidance(project(mesh, matrix, SIDE, SIDE) / SIDE, SIDE, SIDE) if in_front else black
