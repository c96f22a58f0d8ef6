"""Audio2Mesh in training: speech windows in, offsets of the metric mesh from the speaker's neutral mesh out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkinghead.geometry.face_regions import LIPS
from talkinghead.models.audio2mesh import Audio2Mesh
from train.speech.corpus import CorpusConfig
from train.speech.frame_loss import frame_mean, frame_steps
from train.speech.task import SpeechConfig, SpeechTask
from train.speech.window import speech_window
from train.task import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class Audio2MeshConfig(SpeechConfig):
    """Settings of the model and its loss."""

    hidden: int = 512
    """Width between the two fully connected layers."""
    lip_weight: float = 0.0
    """Added weight of the lips' vertices in the loss: 0 is plain L1, 4 counts them five times."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lip_weight < 0:
            raise ValueError("lip_weight must be at least 0")


class Audio2MeshTask(SpeechTask[Audio2MeshConfig]):
    """See `train.task.Task`.

    Args:
        config: Settings.
        data: Data set: folder or URI.
        folder: Where it keeps speakers and statistics.
    """

    name = "audio2mesh"
    columns = ("mesh", "valid")

    def __init__(self, config: Audio2MeshConfig, data: str, folder: Path) -> None:
        super().__init__(config, CorpusConfig(data=data, persons=config.persons, annotation=config.annotation), folder)
        self._vertex_weights = torch.ones(468)
        self._vertex_weights[list(LIPS)] += config.lip_weight

    def make_model(self, wav2vec: dict[str, Any]) -> Audio2Mesh:
        """The model around an encoder of this configuration."""
        return Audio2Mesh(wav2vec=wav2vec, hidden=self.config.hidden, smoothing=self.config.smoothing)

    def loss(self, module: nn.Module, batch: Batch, *, seed: int) -> Losses:
        """Mean absolute error in cm over the frames with a face, and the velocities' where asked for."""
        levels = self.corpus.speech_levels(batch["keys"])
        samples, mask = speech_window(batch, levels, min_frames=self.config.min_window_frames, seed=seed)
        predicted = module(samples, mask.shape[1], mask).float()
        neutral = self.corpus.neutral_meshes(batch["keys"]).to(predicted.device)
        target = batch["mesh"] - neutral[:, None]
        seen = mask & batch["valid"]
        error = torch.where(seen[..., None, None], predicted - target, 0.0)
        mesh = frame_mean(self._over_vertices(error), seen)
        losses = {"loss": mesh, "mesh_l1_cm": mesh.detach()}
        if self.config.velocity_weight:
            steps, pairs = frame_steps(error, seen)
            velocity = frame_mean(self._over_vertices(steps), pairs)
            losses["velocity_l1_cm"] = velocity.detach()
            losses["loss"] = mesh + self.config.velocity_weight * velocity
        return losses

    def validate(self, weights: Path, folder: Path, device: torch.device) -> dict[str, float]:
        """Whole held-out clips, and training clips to see the fit, against the baselines."""
        from train.audio2mesh.validation import validate

        return validate(self.config, self.corpus, weights, folder, device)

    def _over_vertices(self, error: torch.Tensor) -> torch.Tensor:
        """Weighted mean absolute error, `[B, F, 468, 3]` → `[B, F]`."""
        weights = self._vertex_weights.to(error.device)
        return (error.abs().mean(dim=-1) * weights).sum(dim=-1) / weights.sum()
