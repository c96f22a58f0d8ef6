"""Training of Audio2Mesh: speech → mesh offsets from the speaker's neutral mesh.

Windows of speech in, offsets of the metric mesh out; the loss is their mean absolute error in cm.

Dimensions: B samples, F frames of a window, 468 vertices of the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkinghead.geometry.face_regions import LIPS
from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.device_constant import DeviceConstant
from train.audio2lmk.corpus import CorpusConfig
from train.audio2lmk.task import (
    SpeechConfig,
    SpeechTask,
    frame_mean,
    frame_steps,
    paper_training,
    speech_on_many_gpus,
    speech_window,
    tiny_training,
)
from train.audio2lmk.validation import validate_mesh
from train.data_sets import DataSets
from train.many_gpus import NEW_RATE
from train.recipe import Recipe
from train.run.crew import ONE, Crew
from train.task import Batch, Step, Totals


@dataclass(frozen=True, kw_only=True)
class Audio2MeshConfig(SpeechConfig):
    """Settings of the model and its loss."""

    hidden: int = 512
    """Number of channels between the two fully connected layers."""
    lip_weight: float = 0.0
    """Weight that vertices of the lips get on top of 1 in the loss: 0 is plain L1, 4 counts them five times."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lip_weight < 0:
            raise ValueError("lip_weight must be at least 0")


class Audio2MeshTask(SpeechTask[Audio2MeshConfig]):
    """Audio2Mesh in training; see `train.task.Task`.

    Args:
        config: Settings of the model and its loss.
        data: The data sets.
        folder: Folder for speakers and statistics.
    """

    kind = "audio2mesh"
    columns = ("mesh", "valid")

    def __init__(self, config: Audio2MeshConfig, data: DataSets, folder: Path) -> None:
        super().__init__(config, CorpusConfig(data=data, choice=config), folder)
        weights = torch.ones(468)
        weights[list(LIPS)] += config.lip_weight
        self._vertex_weights = DeviceConstant(weights)

    def make_model(self, wav2vec: dict[str, Any]) -> Audio2Mesh:
        """Model around an encoder with this configuration."""
        return Audio2Mesh(wav2vec=wav2vec, hidden=self.config.hidden, smoothing=self.config.smoothing)

    def loss(
        self,
        module: nn.Module,
        batch: Batch,
        *,
        seed: int,
        step: int,
        total: Totals,
        critic: nn.Module | None = None,
    ) -> Step:
        """Mean absolute error in cm over the frames with a face, and that of the velocity where asked for."""
        # Predict offsets from speech: [B, F * 640] → [B, F, 468, 3] in cm.
        samples, mask = speech_window(batch)
        predicted = module(samples, mask.shape[1], mask).float()
        # Compare them with the true ones in frames with a face. Others are NaN, and NaN times 0 would still be NaN:
        # `where` keeps them out of the gradient, too.
        target = batch["mesh"] - batch["neutral"][:, None]
        seen = mask & batch["valid"]
        error = torch.where(seen[..., None, None], predicted - target, 0.0)
        mesh = frame_mean(self._over_vertices(error), seen)
        # Compare their changes from frame to frame, where asked for.
        losses = {"loss": mesh, "mesh_l1_cm": mesh.detach()}
        if self.config.velocity_weight:
            steps, pairs = frame_steps(error, seen)
            velocity = frame_mean(self._over_vertices(steps), pairs)
            losses["velocity_l1_cm"] = velocity.detach()
            losses["loss"] = mesh + self.config.velocity_weight * velocity
        return Step(losses=losses)

    def _over_vertices(self, error: torch.Tensor) -> torch.Tensor:
        """Weighted mean absolute error over vertices and coordinates, `[B, F, 468, 3]` → `[B, F]`."""
        weights = self._vertex_weights.on(error.device)
        return (error.abs().mean(dim=-1) * weights).sum(dim=-1) / weights.sum()

    def validate(self, weights: Path, folder: Path, device: torch.device, crew: Crew = ONE) -> dict[str, float]:
        """Evaluate whole held-out clips, and training clips to see the fit, against the baselines."""
        model = Audio2Mesh.from_pretrained(weights).eval()
        nn.Module.to(model, device)
        return validate_mesh(model, self.corpus, self.config.validation_clips, folder, crew)


# --- recipes ----------------------------------------------------------------------------------------------------------


def tiny() -> Recipe:
    """A small audio encoder with random first weights: fits a handful of clips on a CPU in minutes."""
    config = Audio2MeshConfig(wav2vec="tiny", freeze_cnn=False, window_frames=50)
    return Recipe(config=config, train=tiny_training())


def paper() -> Recipe:
    """Settings of AniPortrait: wav2vec 2.0 base, all but its CNN trained, plain L1, Adam 1e-5, slices of random length.

    Its authors train on about an hour of one actor's frontal speech, at 30 fps; here it is 25 fps. Batch size, number
    of steps, warm-up, clipping of the gradient and averaging of the weights were not published, so those are ours. Set
    `--config.wav2vec` to a folder with wav2vec2-base-960h.
    """
    return Recipe(config=_published(), train=paper_training(_STEPS))


def a100x4() -> Recipe:
    """Four A100 of 40 GB or more: 400,000 windows of 10 s in 12,500 steps of 32.

    Set `--config.wav2vec` as for `paper`. Windows: as many as `paper` takes, ours. Rate: the published 1e-5, which
    `paper` takes for 8 windows, times the square root of 32 / 8: 2e-5. The layers after the encoder, new and with
    outputs of zero, learn at 4 times that, 8e-5. That factor, the batch, the warm-up (500 steps) and the averages
    (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 1.8 GB (DDP), 0.1 GB for each of 8 windows.

    Time, counted: 0.23 TFLOP a window, forward and backward: 4 minutes at 30 % (assumed) of 4 x 312 TFLOPS, so that
    reading decides how long it takes. Nothing was measured on a GPU.
    """
    return _many_gpus("a100x4")


def h100x8() -> Recipe:
    """Eight H100 of 80 GB: 800,000 windows of 10 s in 12,500 steps of 64.

    Set `--config.wav2vec` as for `paper`. Windows: twice as many as `paper` takes, for more data. Rate: the published
    1e-5, which `paper` takes for 8 windows, times the square root of 64 / 8: 2.8e-5. The layers after the encoder, new
    and with outputs of zero, learn at 4 times that, 1.1e-4. That factor, the batch, the warm-up (500 steps) and the
    averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 1.8 GB (DDP), 0.1 GB for each of 8 windows.

    Time, counted: 0.23 TFLOP a window, forward and backward: a minute at 30 % (assumed) of 8 x 989 TFLOPS, so that
    reading decides how long it takes. Nothing was measured on a GPU.
    """
    return _many_gpus("h100x8")


def h100x64() -> Recipe:
    """64 H100 of 80 GB: 1.6 million windows of 10 s in 12,500 steps of 128. Fewer GPUs are as good, see below.

    Set `--config.wav2vec` as for `paper`. Windows: four times as many as `paper` takes, for more data. Rate: the
    published 1e-5, which `paper` takes for 8 windows, times the square root of 128 / 8: 4e-5. The layers after the
    encoder, new and with outputs of zero, learn at 4 times that, 1.6e-4. That factor, the batch, the warm-up (500
    steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 1.8 GB (DDP), 0.1 GB for each of 2 windows.

    Time, counted: 0.23 TFLOP a window, forward and backward: 19 seconds at 30 % (assumed) of 64 x 989 TFLOPS, so that
    reading and the exchange (0.4 GB of gradients a step) decide how long it takes. Nothing was measured on a GPU.
    """
    return _many_gpus("h100x64")


_STEPS = 50_000
"""Steps of `paper`."""


def _published(new_rate: float = 1.0) -> Audio2MeshConfig:
    return Audio2MeshConfig(wav2vec="wav2vec2-base-960h", window_frames=250, min_window_frames=50, new_rate=new_rate)


def _many_gpus(name: str) -> Recipe:
    return Recipe(config=_published(NEW_RATE), train=speech_on_many_gpus(name, _STEPS))


RECIPES = {"tiny": tiny, "paper": paper, "a100x4": a100x4, "h100x8": h100x8, "h100x64": h100x64}
Config = Audio2MeshConfig
make = Audio2MeshTask
