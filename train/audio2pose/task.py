"""Audio2Pose in training: speech and the previous poses in, the head pose of each frame out.

All frames of a window are learnt in one pass (teacher forcing): the decoder sees the true poses before each frame. At
inference it sees its own, so the true ones are disturbed with noise, else it learns to copy and not to listen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from shards.loader import ClipLoader, WindowConfig
from talkinghead import rng
from talkinghead.geometry.pose import pose_from_matrix, rigid_inverse
from talkinghead.models.audio2pose import Audio2Pose
from talkinghead.models.pretrained import Pretrained
from train.corpus import Corpus, CorpusConfig
from train.first_weights import first_weights
from train.frame_loss import frame_mean, frame_steps
from train.speech_window import speech_window
from train.task import Batch, Losses

COLUMNS = ("pose_matrix", "valid")


@dataclass(frozen=True, kw_only=True)
class Audio2PoseConfig:
    """Settings of the model and its loss."""

    wav2vec: str
    """Folder of a wav2vec 2.0 (or similar) model in transformers' layout; or `tiny`: small, random first weights."""
    freeze_cnn: bool = True
    """Leave the encoder's convolutional feature extractor as it is."""
    width: int = 512
    """Of the decoder."""
    layers: int = 8
    heads: int = 8
    feed_forward: int = 1024
    dropout: float = 0.0
    """Of the decoder in training."""
    num_identities: int = 100
    """Rows of the identity embedding; training persons beyond it share rows."""
    memory_attention: Literal["window", "diagonal"] = "window"
    """Which audio features a frame sees: those of a window around it (the paper), or its own only (as published)."""
    memory_window: int = 12
    """Frames of the window on each side."""
    context: int | None = 125
    """Frames of history that self-attention sees; the same in training and at inference, whatever the length. None:
    all, as published."""
    position_period: int = 25
    """Frames after which the position code repeats (FaceFormer's periodic position code)."""
    pose_origin: Literal["rest", "first"] = "rest"
    """What poses are relative to: the clip's median pose, or its first frame (as published)."""
    normalise_pose: bool = True
    """Divide poses by the training data's standard deviation inside the network."""
    history_noise: float = 0.3
    """Standard deviation of the noise on the previous poses, in standard deviations of the training poses; drawn per
    window between 0 and this."""
    velocity_weight: float = 0.0
    """Weight of the L1 between the velocities; 0: off."""
    smoothing: int = 1
    """Frames of the moving average over predictions at inference; goes into the exported model; 1: none."""
    window_frames: int = 125
    """Frames of a window at 25 fps."""
    min_window_frames: int | None = None
    """Shorten windows to a random length from here up; None: never."""
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
        if self.history_noise < 0 or self.velocity_weight < 0:
            raise ValueError("history_noise and velocity_weight must be at least 0")
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ValueError(f"smoothing must be an odd number of frames, not {self.smoothing}")
        if self.num_identities < 1:
            raise ValueError("num_identities must be at least 1")


class Audio2PoseTask:
    """See `train.task.Task`.

    Args:
        config: Settings.
        data: Data set: folder or URI.
        folder: Where it keeps speakers and statistics.
    """

    def __init__(self, config: Audio2PoseConfig, data: str, folder: Path) -> None:
        self.config = config
        self.corpus = Corpus(CorpusConfig(data=data, persons=config.persons, annotation=config.annotation), folder)

    def prepare(self) -> None:
        """Rest poses, identities and statistics; see `train.corpus`."""
        self.corpus.derive()

    def build(self) -> nn.Module:
        """The model with its first weights."""
        config = self.config
        encoder = Pretrained(config.wav2vec)
        statistics = self.corpus.statistics
        with first_weights("audio2pose"):
            model = Audio2Pose(
                wav2vec=encoder.wav2vec_config(),
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                feed_forward=config.feed_forward,
                dropout=config.dropout,
                num_identities=config.num_identities,
                memory_attention=config.memory_attention,
                memory_window=config.memory_window,
                context=config.context,
                position_period=config.position_period,
                pose_origin=config.pose_origin,
                pose_scale=statistics.pose_std if config.normalise_pose else (1.0,) * 6,
                smoothing=config.smoothing,
                max_step=statistics.pose_step_p99,
            )
        encoder.load_wav2vec(model.audio_encoder)
        if config.freeze_cnn:
            model.freeze_cnn()
        return model

    def loader(self, *, global_batch: int, seed: int, rank: int, world: int, num_workers: int) -> ClipLoader:
        """Windows of speech and pose."""
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
        """Mean absolute error over the six numbers (in standard deviations when normalised) and the frames."""
        samples, mask = speech_window(batch, min_frames=self.config.min_window_frames, seed=seed)
        pose, seen = self._targets(batch)
        pose, seen = pose.to(samples.device), mask & seen.to(samples.device)
        scale = torch.tensor(self.corpus.statistics.pose_std if self.config.normalise_pose else (1.0,) * 6)
        previous = torch.cat((torch.zeros_like(pose[:, :1]), pose[:, :-1]), dim=1)
        if self.config.history_noise:
            previous[:, 1:] += self._noise(batch["slot"], previous[:, 1:].shape, seed).to(pose.device)
        identity = torch.tensor(self.corpus.identities(batch["keys"]), device=samples.device)
        predicted = module(samples, previous, identity % self.config.num_identities, mask).float()
        error = torch.where(seen[..., None], (predicted - pose) / scale.to(pose.device), 0.0)
        loss = frame_mean(error.abs().mean(dim=-1), seen)
        degrees = frame_mean((error[..., :3].detach().abs() * scale[:3].to(pose.device)).mean(dim=-1), seen)
        losses = {"loss": loss, "rotation_l1_deg": degrees}
        if self.config.velocity_weight:
            steps, pairs = frame_steps(error, seen)
            velocity = frame_mean(steps.abs().mean(dim=-1), pairs)
            losses["loss"] = loss + self.config.velocity_weight * velocity
        return losses

    def export(self, module: nn.Module, folder: Path) -> None:
        """The model and the speakers (their names are the identities)."""
        assert isinstance(module, Audio2Pose)
        module.save_pretrained(folder)
        self.corpus.export(folder)

    def validate(self, weights: Path, folder: Path) -> dict[str, float]:
        """Whole held-out clips, and training clips to see the fit, against the baselines."""
        from train.audio2pose.validation import validate

        return validate(self.config, self.corpus, weights, folder)

    def _targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Relative poses `[B, F, 6]` in degrees and cm; frames without a face keep the last pose before them, and do
        not count: `[B, F]`."""
        matrices = batch["pose_matrix"].cpu().numpy().astype(np.float64)
        seen = batch["valid"].cpu().numpy()
        poses = np.zeros((*seen.shape, 6), np.float32)
        rests = self.corpus.rest_poses(batch["keys"])
        for row, rest in enumerate(rests):
            if not seen[row].any():
                continue
            frames = _last_seen(seen[row])
            if self.config.pose_origin == "first":
                rest = matrices[row, frames[0]]
            poses[row] = pose_from_matrix(rigid_inverse(rest) @ matrices[row, frames])
        return torch.from_numpy(poses), torch.from_numpy(seen)

    def _noise(self, slots: torch.Tensor, shape: torch.Size, seed: int) -> torch.Tensor:
        noise = np.zeros(shape, np.float32)
        for row, slot in enumerate(slots.tolist()):
            generator = rng.generator(seed, "history noise", slot)
            noise[row] = generator.random() * generator.standard_normal(shape[1:], np.float32)
        return torch.from_numpy(
            noise * self.config.history_noise * np.array(self.corpus.statistics.pose_std, np.float32)
        )


def _last_seen(seen: np.ndarray) -> np.ndarray:
    """For each frame the newest seen one up to it (the first seen one before any was): `[F]` → `[F]` frame numbers."""
    frames = np.where(seen, np.arange(len(seen)), -1)
    frames = np.maximum.accumulate(frames)
    return np.where(frames < 0, int(np.flatnonzero(seen)[0]), frames)
