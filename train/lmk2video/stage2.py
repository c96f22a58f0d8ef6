"""Training of Lmk2Video, stage 2: motion modules on windows of frames, everything else frozen."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talkinghead.files.foreign import read_json
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.published import load_motion_module
from talkinghead.models.weights import first_weights
from talkinghead.provenance import hash_file
from train.config import ParallelConfig
from train.lmk2video.config import (
    PUBLISHED_OPTIMIZER,
    Lmk2VideoConfig,
    paper_training,
    small_training,
    tiny_training,
)
from train.lmk2video.dataset import WindowShape
from train.lmk2video.module import Lmk2Video
from train.lmk2video.task import (
    INDEX_FILE,
    Lmk2VideoTask,
    check_encoder,
    pipeline_folder,
    provenance_of,
    read_networks,
)
from train.many_gpus import MACHINES, many_gpus_training
from train.recipe import Recipe
from train.sources import Source
from train.task import Provenance

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage2Config(Lmk2VideoConfig):
    """Settings of stage 2."""

    stage1: str
    """Weights to add motion to: the RUN of stage 1, its pretrained_model, or converted weights. Their VAE and image
    encoder are used, too."""
    motion_module: str | None = None
    """File of the first weights of the motion modules, such as AnimateDiff's mm_sd_v15_v2.ckpt (networks of Stable
    Diffusion 1.5's size only); None: those of `stage1` where it has any, else first weights from a fixed seed."""
    num_frames: int = 16
    """Frames of a window."""
    long_stride: int = 4
    """Stride in clip frames of long windows, which show the motion sped up."""
    long_probability: float = 0.5
    """Share of long windows; the others have consecutive frames."""
    max_frames: int = 32
    """Longest window in frames that the motion modules can take, where they are made here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.num_frames <= self.max_frames:
            raise ValueError(f"num_frames must be in 2 … {self.max_frames} (max_frames), not {self.num_frames}")
        # Refuses strides and shares that make no window.
        WindowShape(num_frames=self.num_frames, long_stride=self.long_stride, long_probability=self.long_probability)


class Stage2Task(Lmk2VideoTask[Stage2Config]):
    """Stage 2 in training; see `train.task.Task`."""

    weights_key = "stage2"

    @property
    def window(self) -> WindowShape:
        """Windows of consecutive frames, and of frames further apart."""
        config = self.config
        return WindowShape(
            num_frames=config.num_frames, long_stride=config.long_stride, long_probability=config.long_probability
        )

    @property
    def image_sources(self) -> tuple[str, str]:
        """Sources of VAE and image encoder: those of stage 1."""
        return str(self.stage1_folder / "vae"), str(self.stage1_folder / "image_encoder")

    @functools.cached_property
    def stage1_folder(self) -> Path:
        """Folder of the pipeline that stage 1 exported, or of `init`.

        Raises:
            ValueError: There is no such folder.
        """
        if self.config.init is not None:
            return self.init_folder
        return pipeline_folder(self.config.stage1, "stage 1", "--config.stage1")

    def first_weights(self) -> dict[str, Provenance]:
        """Provenance of stage 1, and of the motion modules where they are given.

        Raises:
            ValueError: Weights are missing or damaged, or do not fit.
        """
        # Another size than that of stage 1 is allowed, since the networks take any, but it is seldom meant.
        trained = self._trained_size()
        if trained not in ((None, None), (wanted := (self.config.width, self.config.height))):
            log.warning("stage 1 was trained on images of %s x %s, and stage 2 shall be on %s x %s", *trained, *wanted)
        module = self._module()
        setting, place = ("stage1", self.config.stage1) if self.config.init is None else ("init", self.config.init)
        found = {setting: provenance_of(place, self.encoder, module)}
        # Motion modules of another training, which must fit the denoiser.
        if self.config.motion_module is not None:
            file = Path(self.config.motion_module)
            load_motion_module(module.denoiser, file)
            found["motion_module"] = {"kind": "file", "name": file.name, "sha256": hash_file(file)}
        return found

    def build(self) -> Lmk2Video:
        """Module with its first weights; see `train.task.Task`."""
        module = self._module()
        if self.config.motion_module is not None:
            report = load_motion_module(module.denoiser, self.config.motion_module)
            log.info("%s", report)
        # Freezes all that stage 1 trained.
        module.train_motion()
        return module

    def sources(self) -> dict[str, Source]:
        """Weights of the pipeline, and of the motion modules where they are given."""
        if self.config.init is not None:
            found = {"init": Source(what="whole pipeline with motion modules, trained or published")}
        else:
            found = {"stage1": Source(what="weights of stage 1", frozen=True, may_miss=r"\.motion_modules\.")}
        if self.config.motion_module is not None:
            found["motion_module"] = Source(what="AnimateDiff's motion modules")
        return found

    def _module(self) -> Lmk2Video:
        known = read_networks(self.stage1_folder)
        if self.config.init is not None and known.denoiser.max_frames is None:
            raise ValueError(
                f"the weights in {self.config.init} have no motion modules: give them as --config.stage1, to which"
                " stage 2 adds some"
            )
        check_encoder(known, self.encoder, self.config.init or self.config.stage1)
        return Lmk2Video(self._with_motion(known.denoiser), known.reference_net, known.pose_guider)

    def _with_motion(self, known: Denoiser) -> Denoiser:
        # Stage 1 left no motion modules: a denoiser that has them takes the spatial weights over.
        if known.max_frames is None:
            settings: dict[str, Any] = {name: value for name, value in known.config.items() if not name.startswith("_")}
            heads = settings["num_attention_heads"]
            settings |= {"motion": True, "motion_frames": self.config.max_frames, "motion_heads": heads}
            with first_weights(self.weights_key):
                denoiser = Denoiser(**settings)
            denoiser.load_spatial(known.state_dict())
            return denoiser
        # It has some (converted weights): they go on, with the position codes that they know.
        if self.config.num_frames > known.max_frames:
            raise ValueError(
                f"the motion modules of {self.config.init or self.config.stage1} know {known.max_frames} frames: lower"
                f" num_frames {self.config.num_frames}"
            )
        return known

    def _trained_size(self) -> tuple[int | None, int | None]:
        path = self.stage1_folder / INDEX_FILE
        index = read_json(path)
        size = (index.get("width"), index.get("height")) if isinstance(index, dict) else ("?", "?")
        if any(type(extent) not in (int, type(None)) for extent in size):
            raise ValueError(f"{path} is damaged: width and height must be numbers of pixels")
        return size


# --- recipes ----------------------------------------------------------------------------------------------------------


def tiny() -> Recipe:
    """Motion modules on top of stage 1's `tiny`: a handful of clips on a CPU in minutes."""
    config = Stage2Config(
        stage1="stage1",
        width=64,
        height=64,
        num_frames=8,
        mouth_weight=4.0,
        keep_in_memory_mb=512,
    )
    return Recipe(config=config, train=tiny_training(steps=240, global_batch=2, learning_rate=6e-3))


def small() -> Recipe:
    """Motion modules on top of stage 1's `small`, on one GPU in hours."""
    config = Stage2Config(stage1="stage1", width=128, height=128, mouth_weight=2.0)
    return Recipe(config=config, train=small_training(steps=30_000, global_batch=4))


def paper() -> Recipe:
    """Published settings: windows of 16 frames at 512 x 512 (of every frame, or of every fourth), batches of 4 on
    four GPUs, AdamW 1e-5, 40,000 steps, motion modules that begin as AnimateDiff's.

    Set `--config.stage1` to the RUN of stage 1 and `--config.motion_module` to mm_sd_v15_v2.ckpt. 453 million of 2.36
    billion parameters are trained: on each GPU the weights take 9.4 GB, gradients, moments and averages 7.3 GB.
    Activations are computed again in the backward pass; 2 GB of a window are kept. Forward and backward, a window costs
    64 TFLOP in the networks, and 19 for encoding its images where latents are not read: run make latents first. The
    paper trained for two days on four A100.
    Not published: averages of the weights (decay 0.9999; `--train.ema.decay 0` keeps none, as published), bf16, moments
    in 32 bits.
    """
    parallel = ParallelConfig(precision="bf16", activation_checkpointing=True, most_at_once=1)
    return Recipe(config=_published(), train=paper_training(40_000, 4, parallel))


def a100x4() -> Recipe:
    """Four A100 of 40 GB or more: 160,000 windows of 16 frames at 512 x 512 in 10,000 steps of 16, about 8 hours.

    Set `--config.stage1` and `--config.motion_module` as for `paper`, and run make latents first.

    Windows: the published 40,000 steps of 4. Rate: the published 1e-5 for 4 windows, times the square root of 16 / 4:
    2e-5. All that is trained begins as AnimateDiff's, so that no part has another rate. The batch, the warm-up (500
    steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 16.7 GB (DDP), 2 GB of activations for the one
    window at once, the others being computed again block by block: about 22 GB, and room for a validation.

    Time, counted: 64 TFLOP a window, forward twice and backward, at 30 % (assumed) of 4 x 312 TFLOPS: 7.6 hours.
    Nothing was measured on a GPU.
    """
    return _many_gpus("a100x4", activation_checkpointing=True)


def h100x8() -> Recipe:
    """Eight H100 of 80 GB: 320,000 windows of 16 frames at 512 x 512 in 10,000 steps of 32, about 2 hours.

    Set `--config.stage1` and `--config.motion_module` as for `paper`, and run make latents first.

    Windows: twice the published 40,000 steps of 4, for more data. Rate: the published 1e-5 for 4 windows, times the
    square root of 32 / 4: 2.8e-5. All that is trained begins as AnimateDiff's, so that no part has another rate. The
    batch, the warm-up (500 steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 16.7 GB (DDP), and 32.4 GB of activations and
    bf16 weights for the one window at once, all kept: 49 GB, and room for a validation. Of these the activations are
    planned with about 28 GB; by the sizes of their tensors they take 24.8 GB.

    Time, counted: 48.6 TFLOP a window, forward and backward, at 30 % (assumed) of 8 x 989 TFLOPS: 1.8 hours. Nothing
    was measured on a GPU.
    """
    return _many_gpus("h100x8")


def h100x64() -> Recipe:
    """64 H100 of 80 GB: 640,000 windows of 16 frames at 512 x 512 in 10,000 steps of 64, about half an hour.

    Set `--config.stage1` and `--config.motion_module` as for `paper`, and run make latents first.

    Windows: four times the published 40,000 steps of 4, for more data. Rate: the published 1e-5 for 4 windows, times
    the square root of 64 / 4: 4e-5. All that is trained begins as AnimateDiff's, so that no part has another rate. The
    batch, the warm-up (500 steps) and the averages (decay 0.9999) are ours; train/many_gpus.py says why.

    Memory of a GPU, counted: weights, gradients, moments and averages 16.7 GB (DDP), and 32.4 GB of activations and
    bf16 weights for its one window, all kept: 49 GB, and room for a validation.

    Time, counted: 48.6 TFLOP a window, forward and backward, at 30 % (assumed) of 64 x 989 TFLOPS: 0.5 hours, 0.16 s a
    step. Meanwhile 1.8 GB of gradients are exchanged, 0.07 s with 400 Gbit/s for each GPU. Nothing was measured on a
    GPU.
    """
    return _many_gpus("h100x64")


def _published() -> Stage2Config:
    """Published windows and sources; validation as we see fit."""
    return Stage2Config(stage1="stage1", motion_module="mm_sd_v15_v2.ckpt", validation_clips=16)


def _many_gpus(name: str, *, activation_checkpointing: bool = False) -> Recipe:
    train = many_gpus_training(
        MACHINES[name],
        samples=40_000 * 4,
        batch=16,
        published=PUBLISHED_OPTIMIZER,
        published_batch=4,
        warmup_steps=500,
        most_at_once=1,
        activation_checkpointing=activation_checkpointing,
    )
    return Recipe(config=_published(), train=train)


RECIPES = {"tiny": tiny, "small": small, "paper": paper, "a100x4": a100x4, "h100x8": h100x8, "h100x64": h100x64}
Config = Stage2Config
make = Stage2Task
