"""Audio2Pose against the truth: whole clips, decoded as at inference, and with the true poses before each frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from infer.evaluation import TrueClip, evaluate_pose, read_clips
from infer.evaluation_result import write_evaluations
from talkinghead.models.audio2pose import Audio2Pose
from talkinghead.models.speech_features import normalise
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from train.corpus import Corpus
from train.plots import ValidationFigures
from train.trace_video import write_trace_video
from train.validation_clips import HELD_OUT, validation_clips

if TYPE_CHECKING:
    from train.audio2pose.task import Audio2PoseConfig

COLUMNS = ("pose_matrix", "valid")


def validate(config: Audio2PoseConfig, corpus: Corpus, weights: Path, folder: Path) -> dict[str, float]:
    """See `train.task.Task.validate`. A held-out speaker has no identity of his own and takes number 0."""
    model = Audio2Pose.from_pretrained(weights).eval()
    pipeline = AudioToLandmarks(None, model)

    def identity(clip: TrueClip) -> int:
        known = corpus.speakers
        return known.identity(clip.speaker) % config.num_identities if clip.speaker in known else 0

    def free_running(clip: TrueClip) -> np.ndarray:
        return pipeline.predict_pose(clip.audio, identity=identity(clip))

    @torch.inference_mode()
    def teacher_forced(clip: TrueClip, previous: np.ndarray) -> np.ndarray:
        samples = normalise(torch.from_numpy(clip.audio))[None]
        known = torch.from_numpy(previous).float()[None]
        return model(samples, known, torch.tensor([identity(clip)])).float()[0].numpy()

    evaluations = {}
    for title, samples in validation_clips(corpus, COLUMNS, config.validation_clips).items():
        figures = ValidationFigures(folder / title.split()[0], write_trace_video if title == HELD_OUT else None)
        evaluations[title] = evaluate_pose(
            free_running,
            read_clips(samples, "pose"),
            teacher_forced=teacher_forced,
            mean_pose=np.array(corpus.statistics.pose_mean),
            origin=config.pose_origin,
            watch=figures,
        )
    write_evaluations(folder, evaluations)
    return {
        f"{title.split()[0]}/{name}": value
        for title, evaluation in evaluations.items()
        for name, value in evaluation.numbers().items()
    }
