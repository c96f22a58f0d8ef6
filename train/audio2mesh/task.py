"""Audio2Mesh in training: speech windows in, offsets of the metric mesh from the speaker's neutral mesh out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shards.loader import ClipLoader, WindowConfig
from talkinghead.geometry.face_regions import LIPS
from talkinghead.models.audio2mesh import Audio2Mesh
from talkinghead.models.pretrained import Pretrained
from train.corpus import Corpus, CorpusConfig
from train.first_weights import first_weights
from train.frame_loss import frame_mean, frame_steps
from train.speech_window import speech_window
from train.task import Batch, Losses

COLUMNS = ("mesh", "valid")


@dataclass(frozen=True, kw_only=True)
class Audio2MeshConfig:
    """Settings of the model and its loss."""

    wav2vec: str
    """Folder of a wav2vec 2.0 (or similar) model in transformers' layout; or `tiny`: small, random first weights."""
    freeze_cnn: bool = True
    """Leave the encoder's convolutional feature extractor as it is."""
    hidden: int = 512
    """Width between the two fully connected layers."""
    window_frames: int = 125
    """Frames of a window at 25 fps."""
    min_window_frames: int | None = None
    """Shorten windows to a random length from here up; None: never."""
    lip_weight: float = 0.0
    """Added weight of the lips' vertices in the loss: 0 is plain L1, 4 counts them five times."""
    velocity_weight: float = 0.0
    """Weight of the L1 between the velocities (cm per frame); 0: off."""
    smoothing: int = 1
    """Frames of the moving average over predictions at inference; goes into the exported model; 1: none."""
    persons: tuple[str, ...] = ()
    """Train on these persons (or split groups) only; empty: all."""
    annotation: str | None = None
    """Annotation version; None: the newest when the run begins."""
    validation_clips: int = 4
    """Held-out clips that are validated, and as many training clips beside them."""

    def __post_init__(self) -> None:
        if self.window_frames < 2 or (self.min_window_frames or 2) < 2:
            raise ValueError("window_frames and min_window_frames must be at least 2")
        if self.min_window_frames is not None and self.min_window_frames > self.window_frames:
            raise ValueError(f"min_window_frames {self.min_window_frames} is above window_frames {self.window_frames}")
        if self.lip_weight < 0 or self.velocity_weight < 0:
            raise ValueError("lip_weight and velocity_weight must be at least 0")
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ValueError(f"smoothing must be an odd number of frames, not {self.smoothing}")


class Audio2MeshTask:
    """See `train.task.Task`.

    Args:
        config: Settings.
        data: Data set: folder or URI.
        folder: Where it keeps speakers and statistics.
    """

    def __init__(self, config: Audio2MeshConfig, data: str, folder: Path) -> None:
        self.config = config
        self.corpus = Corpus(CorpusConfig(data=data, persons=config.persons, annotation=config.annotation), folder)
        self._vertex_weights = torch.ones(468)
        self._vertex_weights[list(LIPS)] += config.lip_weight

    def prepare(self) -> None:
        """Speakers, neutral meshes and statistics; see `train.corpus`."""
        self.corpus.derive()

    def build(self) -> nn.Module:
        """The model with its first weights."""
        encoder = Pretrained(self.config.wav2vec)
        with first_weights("audio2mesh"):
            model = Audio2Mesh(
                wav2vec=encoder.wav2vec_config(), hidden=self.config.hidden, smoothing=self.config.smoothing
            )
        encoder.load_wav2vec(model.audio_encoder)
        if self.config.freeze_cnn:
            model.freeze_cnn()
        return model

    def loader(self, *, global_batch: int, seed: int, rank: int, world: int, num_workers: int) -> ClipLoader:
        """Windows of speech and mesh."""
        window = WindowConfig(num_frames=self.config.window_frames, columns=("audio", *COLUMNS))
        return ClipLoader(
            self.corpus.reader(COLUMNS),
            window,
            global_batch=global_batch,
            seed=seed,
            rank=rank,
            world=world,
            num_workers=num_workers,
        )

    def loss(self, module: nn.Module, batch: Batch, *, seed: int) -> Losses:
        """Mean absolute error in cm over the frames with a face, and the velocities' where asked for."""
        samples, mask = speech_window(batch, min_frames=self.config.min_window_frames, seed=seed)
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

    def export(self, module: nn.Module, folder: Path) -> None:
        """The model, the speakers' neutral meshes, and the expression basis that neutralises a portrait."""
        assert isinstance(module, Audio2Mesh)
        module.save_pretrained(folder)
        self.corpus.export(folder)

    def validate(self, weights: Path, folder: Path) -> dict[str, float]:
        """Whole held-out clips, and training clips to see the fit, against the baselines."""
        from train.audio2mesh.validation import validate

        return validate(self.config, self.corpus, weights, folder)

    def _over_vertices(self, error: torch.Tensor) -> torch.Tensor:
        """Weighted mean absolute error, `[B, F, 468, 3]` → `[B, F]`."""
        weights = self._vertex_weights.to(error.device)
        return (error.abs().mean(dim=-1) * weights).sum(dim=-1) / weights.sum()
