"""Audio2Pose against the truth: whole clips, decoded as at inference, and with the true poses before each frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from infer.evaluation.motion_evaluation import Evaluation, TrueClip, Watch, evaluate_pose, identity_of, read_clips
from shards.reader import Sample
from talkinghead.models.audio2pose import Audio2Pose
from talkinghead.models.speech_features import normalise
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from train.speech.corpus import Corpus
from train.speech.validation import validate_clips

if TYPE_CHECKING:
    from train.audio2pose.task import Audio2PoseConfig


def validate(
    config: Audio2PoseConfig, corpus: Corpus, weights: Path, folder: Path, device: torch.device
) -> dict[str, float]:
    """See `train.task.Task.validate`."""
    model = Audio2Pose.from_pretrained(weights).eval()
    nn.Module.to(model, device)
    pipeline = AudioToLandmarks(None, model)

    def identity(clip: TrueClip) -> int:
        return identity_of(clip.speaker, corpus.speakers, model.id_embed.num_embeddings)

    def free_running(clip: TrueClip) -> np.ndarray:
        return pipeline.predict_pose(clip.audio, identity=identity(clip))

    @torch.inference_mode()
    def teacher_forced(clip: TrueClip, previous: np.ndarray) -> np.ndarray:
        samples = normalise(torch.from_numpy(clip.audio))[None].to(device)
        known = torch.from_numpy(previous).float()[None].to(device)
        return model(samples, known, torch.tensor([identity(clip)], device=device)).float()[0].cpu().numpy()

    def evaluate(samples: Sequence[Sample], *, held_out: bool, watch: Watch) -> Evaluation:
        del held_out  # poses are relative to each clip's own origin
        return evaluate_pose(
            free_running,
            read_clips(samples, "pose"),
            teacher_forced=teacher_forced,
            mean_pose=np.array(corpus.statistics.pose_mean),
            origin=config.pose_origin,
            watch=watch,
        )

    return validate_clips(corpus, "pose", config.validation_clips, folder, evaluate)
