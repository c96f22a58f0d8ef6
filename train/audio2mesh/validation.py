"""Audio2Mesh against the truth: whole clips through the pipeline that users run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from infer.evaluation.motion_evaluation import Evaluation, TrueClip, Watch, evaluate_mesh, read_clips
from shards.reader import Sample
from talkinghead.models.audio2mesh import Audio2Mesh
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from train.speech.corpus import Corpus
from train.speech.validation import validate_clips

if TYPE_CHECKING:
    from train.audio2mesh.task import Audio2MeshConfig


def validate(
    config: Audio2MeshConfig, corpus: Corpus, weights: Path, folder: Path, device: torch.device
) -> dict[str, float]:
    """See `train.task.Task.validate`."""
    model = Audio2Mesh.from_pretrained(weights).eval()
    nn.Module.to(model, device)
    pipeline = AudioToLandmarks(model)

    def predict(clip: TrueClip) -> np.ndarray:
        return pipeline.predict_offsets(clip.audio)

    def evaluate(samples: Sequence[Sample], *, held_out: bool, watch: Watch) -> Evaluation:
        return evaluate_mesh(
            predict,
            read_clips(samples, "mesh"),
            mean_offset=corpus.speakers.mean_offset,
            # A held-out speaker's is estimated from the clip, as it would be taken from a portrait.
            neutral=None if held_out else lambda clip: corpus.speakers[clip.speaker].neutral.mesh,
            watch=watch,
        )

    return validate_clips(corpus, "mesh", config.validation_clips, folder, evaluate)
