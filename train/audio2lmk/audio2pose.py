"""Training of Audio2Pose: speech → head pose, relative to the head's rest pose.

All frames of a window are learnt in one pass (teacher forcing): the decoder sees the true poses before each frame. At
inference it sees its own, so the true ones are disturbed with noise, else it learns to copy and not to listen.

Dimensions: B samples, F frames of a window, 6 numbers of a pose (degrees, cm).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
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
from train.audio2lmk.validation import validate_pose
from train.audio2lmk.windows import PoseDraws
from train.data_sets import DataSets
from train.many_gpus import NEW_RATE
from train.recipe import Recipe
from train.run.crew import ONE, Crew
from train.task import Batch, PartialFigures, Step, Totals

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Audio2PoseConfig(SpeechConfig):
    """Settings of the model and its loss."""

    width: int = 512
    """Number of channels of the decoder."""
    layers: int = 8
    """Number of layers of the decoder."""
    heads: int = 8
    """Number of attention heads in a layer."""
    feed_forward: int = 1024
    """Number of channels inside the feed-forward part of a layer."""
    dropout: float = 0.0
    """Dropout of the decoder in training."""
    num_identities: int | None = None
    """Number of rows of the identity embedding; with fewer than training speakers, some share one. None: one for
    each."""
    memory_attention: Literal["window", "diagonal"] = "window"
    """Audio features that a frame attends to: those of a window around it (the paper), or its own only (as
    published)."""
    memory_window: int = 12
    """Number of frames of that window on each side."""
    context: int | None = 125
    """Number of past frames that self-attention sees, however long the speech is. Windows are longer, so that training
    meets what inference does: a past that moves on. None: all, as published."""
    position_period: int = 25
    """Number of frames after which the position code repeats (periodic position code of FaceFormer)."""
    restart_frames: int = 125
    """Without `context`: number of past frames that decoding goes on with once it has decoded twice as many."""
    pose_origin: Literal["rest", "first"] = "rest"
    """Origin that poses are relative to: the median pose of the clip, or its first frame (as published)."""
    normalise_pose: bool = True
    """Whether the network divides poses by the standard deviation of the training data."""
    history_noise: float = 0.3
    """Largest standard deviation of the noise on the previous poses, in standard deviations of the training poses; that
    of a window is drawn between 0 and this."""
    window_frames: int = 250
    """Number of frames of a window, at 25 fps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_noise < 0:
            raise ValueError("history_noise must be at least 0")
        if self.num_identities is not None and self.num_identities < 1:
            raise ValueError("num_identities must be at least 1, or None")
        if self.heads < 1 or self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        if self.memory_window < 0 or (self.context is not None and self.context < 1):
            raise ValueError("memory_window must be at least 0, context at least 1 or None")
        if self.context is None and not 0 < self.restart_frames < self.position_period:
            raise ValueError(
                f"restart_frames {self.restart_frames} must lie between 0 and position_period {self.position_period};"
                " or bound the past with context"
            )
        # Training must show as long a past as inference has: else attention meets distances that it never learnt.
        name, past = "context", self.context
        if past is None:
            name, past = "2 x restart_frames", min(2 * self.restart_frames, self.position_period)
        if past > self.window_frames:
            raise ValueError(
                f"at inference a frame sees up to {past} frames of the past ({name}), of which windows of"
                f" {self.window_frames} frames teach nothing: lower {name}, or take a longer window_frames"
            )


class Audio2PoseTask(SpeechTask[Audio2PoseConfig]):
    """Audio2Pose in training; see `train.task.Task`.

    Args:
        config: Settings of the model and its loss.
        data: The data sets.
        folder: Folder for speakers and statistics.
    """

    kind = "audio2pose"
    columns = ("pose_matrix", "valid")

    def __init__(self, config: Audio2PoseConfig, data: DataSets, folder: Path) -> None:
        super().__init__(config, CorpusConfig(data=data, choice=config, pose_origin=config.pose_origin), folder)

    def prepare(self) -> None:
        """Derive rest poses, identities and statistics; see `train.audio2lmk.corpus`."""
        super().prepare()
        if self.identities < (known := len(self.corpus.speakers)):
            log.warning(
                "%d training speakers share %d identities, so a speaker's name picks a mixture of several: leave"
                " num_identities at None for one each",
                known,
                self.identities,
            )

    @property
    def identities(self) -> int:
        """Number of rows of the identity embedding."""
        if self.config.num_identities is not None:
            return self.config.num_identities
        return self.init.model.config["num_identities"] if self.config.init else len(self.corpus.speakers)

    def make_model(self, wav2vec: dict[str, Any]) -> Audio2Pose:
        """Model around an encoder with this configuration."""
        config = self.config
        step = self.init.model.config["max_step"] if config.init else self.corpus.statistics.pose_step_p99
        return Audio2Pose(
            wav2vec=wav2vec,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            feed_forward=config.feed_forward,
            dropout=config.dropout,
            num_identities=self.identities,
            memory_attention=config.memory_attention,
            memory_window=config.memory_window,
            context=config.context,
            position_period=config.position_period,
            restart_frames=config.restart_frames,
            pose_origin=config.pose_origin,
            pose_scale=self._scale,
            smoothing=config.smoothing,
            max_step=step,
        )

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
        """Mean absolute error over the six numbers (in standard deviations when normalised) and the frames."""
        # Predict the poses [B, F, 6] from speech [B, F * 640] and the true poses before each frame, with noise.
        samples, mask = speech_window(batch)
        predicted = module(samples, batch["previous"], batch["identity"], mask).float()
        # Compare them with the true ones, in frames with a face.
        seen = mask & batch["valid"]
        scale = self._divisor.on(predicted.device)
        error = torch.where(seen[..., None], (predicted - batch["pose"]) / scale, 0.0)
        loss = frame_mean(error.abs().mean(dim=-1), seen)
        degrees = frame_mean((error[..., :3].detach().abs() * scale[:3]).mean(dim=-1), seen)
        # Compare their changes from frame to frame, where asked for.
        losses = {"loss": loss, "rotation_l1_deg": degrees}
        if self.config.velocity_weight:
            steps, pairs = frame_steps(error, seen)
            velocity = frame_mean(steps.abs().mean(dim=-1), pairs)
            losses["loss"] = loss + self.config.velocity_weight * velocity
        return Step(losses=losses, figures=self._by_noise(losses["loss"], batch))

    @property
    def _scale(self) -> tuple[float, ...]:
        """Divisor of each pose number, inside the network and in the loss."""
        if self.config.init is not None:  # the weights are for poses that were divided so
            return tuple(self.init.model.config["pose_scale"])
        return self.corpus.statistics.pose_std if self.config.normalise_pose else (1.0,) * 6

    @functools.cached_property
    def _divisor(self) -> DeviceConstant:
        return DeviceConstant(torch.tensor(self._scale))

    def draws(self, seed: int) -> PoseDraws:
        """What is drawn for a window: its length, and the noise on the previous poses."""
        return PoseDraws(
            seed=seed,
            min_frames=self.config.min_window_frames,
            history_noise=self.config.history_noise,
            pose_std=self.corpus.statistics.pose_std,
        )

    def _by_noise(self, loss: torch.Tensor, batch: Batch) -> PartialFigures:
        """Loss of the samples whose previous poses are disturbed little, and of the others: a decoder that copies and
        does not listen is good at the first alone."""
        if not self.config.history_noise:
            return {}
        strong = batch["strong_noise"]
        return {"loss/weak_noise": (loss, ~strong), "loss/strong_noise": (loss, strong)}

    def validate(self, weights: Path, folder: Path, device: torch.device, crew: Crew = ONE) -> dict[str, float]:
        """Evaluate whole held-out clips, and training clips to see the fit, against the baselines."""
        model = Audio2Pose.from_pretrained(weights).eval()
        nn.Module.to(model, device)
        return validate_pose(model, self.corpus, self.config.pose_origin, self.config.validation_clips, folder, crew)


# --- recipes ----------------------------------------------------------------------------------------------------------


def tiny() -> Recipe:
    """A small encoder and decoder with random first weights: fits a handful of clips on a CPU in minutes."""
    config = Audio2PoseConfig(
        wav2vec="tiny",
        freeze_cnn=False,
        width=128,
        layers=2,
        heads=4,
        feed_forward=256,
        window_frames=75,
        context=38,
        history_noise=1.0,
    )
    return Recipe(config=config, train=tiny_training())


def paper() -> Recipe:
    """Settings of the paper: wav2vec 2.0 base, an eight-layer decoder that attends to a window of the speech, L1, Adam
    1e-5, HDTF.

    Ours are: poses about the rest pose of the clip, in standard deviations; a bounded past with a repeating position
    code; noise on the history; no dropout; 25 fps; batch size, number of steps, warm-up, clipping of the gradient and
    averaging of the weights, which were not published. Set `--config.wav2vec` to a folder with wav2vec2-base-960h.
    """
    return Recipe(config=Audio2PoseConfig(wav2vec="wav2vec2-base-960h"), train=paper_training(_STEPS))


def compat() -> Recipe:
    """Attention of the published network: each frame sees its own audio feature only (a diagonal mask), 600 positions
    counted from the start of the window, poses relative to the first frame, 100 identities, no noise on the history.

    It learns on 2 to 10 s; at inference, speech of more than 10 s goes on in chunks that begin with 5 s of the one
    before.
    """
    recipe = paper()
    config = dataclasses.replace(
        recipe.config,
        num_identities=100,
        memory_attention="diagonal",
        context=None,
        position_period=600,
        restart_frames=125,
        pose_origin="first",
        history_noise=0.0,
        normalise_pose=False,
        window_frames=250,
        min_window_frames=50,
    )
    return dataclasses.replace(recipe, config=config)


def a100x4() -> Recipe:
    """Four A100 of 40 GB or more: 800,000 windows of 10 s in 25,000 steps of 32.

    Set `--config.wav2vec` as for `paper`. Windows: as many as `paper` takes, ours. Rate: the published 1e-5, which
    `paper` takes for 8 windows, times the square root of 32 / 8: 2e-5. The decoder, new and with outputs of zero,
    learns at 4 times that, 8e-5. That factor, the batch, the warm-up (500 steps) and the averages (decay 0.9999) are
    ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 2.3 GB (DDP), 0.2 GB for each of 8 windows.

    Time, counted: 0.27 TFLOP a window, forward and backward: 10 minutes at 30 % (assumed) of 4 x 312 TFLOPS, so that
    reading decides how long it takes. Nothing was measured on a GPU.
    """
    return _many_gpus("a100x4")


def h100x8() -> Recipe:
    """Eight H100 of 80 GB: 1.6 million windows of 10 s in 25,000 steps of 64.

    Set `--config.wav2vec` as for `paper`. Windows: twice as many as `paper` takes, for more data. Rate: the published
    1e-5, which `paper` takes for 8 windows, times the square root of 64 / 8: 2.8e-5. The decoder, new and with outputs
    of zero, learns at 4 times that, 1.1e-4. That factor, the batch, the warm-up (500 steps) and the averages (decay
    0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 2.3 GB (DDP), 0.2 GB for each of 8 windows.

    Time, counted: 0.27 TFLOP a window, forward and backward: 3 minutes at 30 % (assumed) of 8 x 989 TFLOPS, so that
    reading decides how long it takes. Nothing was measured on a GPU.
    """
    return _many_gpus("h100x8")


def h100x64() -> Recipe:
    """64 H100 of 80 GB: 3.2 million windows of 10 s in 25,000 steps of 128. Fewer GPUs are as good, see below.

    Set `--config.wav2vec` as for `paper`. Windows: four times as many as `paper` takes, for more data. Rate: the
    published 1e-5, which `paper` takes for 8 windows, times the square root of 128 / 8: 4e-5. The decoder, new and with
    outputs of zero, learns at 4 times that, 1.6e-4. That factor, the batch, the warm-up (500 steps) and the averages
    (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 2.3 GB (DDP), 0.2 GB for each of 2 windows.

    Time, counted: 0.27 TFLOP a window, forward and backward: 46 seconds at 30 % (assumed) of 64 x 989 TFLOPS, so that
    reading and the exchange (0.5 GB of gradients a step) decide how long it takes. Nothing was measured on a GPU.
    """
    return _many_gpus("h100x64")


_STEPS = 100_000
"""Steps of `paper`."""


def _many_gpus(name: str) -> Recipe:
    config = Audio2PoseConfig(wav2vec="wav2vec2-base-960h", new_rate=NEW_RATE)
    return Recipe(config=config, train=speech_on_many_gpus(name, _STEPS))


RECIPES = {
    "tiny": tiny,
    "paper": paper,
    "compat": compat,
    "a100x4": a100x4,
    "h100x8": h100x8,
    "h100x64": h100x64,
}
Config = Audio2PoseConfig
make = Audio2PoseTask
