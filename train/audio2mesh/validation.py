"""Audio2Mesh against the truth: whole clips through the pipeline that users run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer.evaluation import TrueClip, evaluate_mesh, read_clips
from infer.evaluation_result import write_evaluations
from talkinghead.models.audio2mesh import Audio2Mesh
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from train.corpus import Corpus
from train.plots import ValidationFigures
from train.trace_video import write_trace_video
from train.validation_clips import HELD_OUT, validation_clips

if TYPE_CHECKING:
    from train.audio2mesh.task import Audio2MeshConfig

COLUMNS = ("mesh", "blendshapes", "valid")


def validate(config: Audio2MeshConfig, corpus: Corpus, weights: Path, folder: Path) -> dict[str, float]:
    """See `train.task.Task.validate`."""
    pipeline = AudioToLandmarks(Audio2Mesh.from_pretrained(weights).eval())

    def predict(clip: TrueClip) -> np.ndarray:
        return pipeline.predict_offsets(clip.audio)

    evaluations = {}
    for title, samples in validation_clips(corpus, COLUMNS, config.validation_clips).items():
        figures = ValidationFigures(folder / title.split()[0], write_trace_video if title == HELD_OUT else None)
        evaluations[title] = evaluate_mesh(
            predict,
            read_clips(samples, "mesh"),
            mean_offset=corpus.speakers.mean_offset,
            # A held-out speaker's is estimated from the clip, as it would be taken from a portrait.
            neutral=None if title == HELD_OUT else lambda clip: corpus.speakers[clip.speaker].neutral.mesh,
            watch=figures,
        )
    write_evaluations(folder, evaluations)
    return {
        f"{title.split()[0]}/{name}": value
        for title, evaluation in evaluations.items()
        for name, value in evaluation.numbers().items()
    }
