"""Settings of both trainings of Lmk2Video: data, noise and loss, and those of the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from shards.reader import ClipDecoder
from train.clip_choice import ClipChoice
from train.config import (
    CheckpointConfig,
    EmaConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)

UseLatents = Literal["auto", "no", "require"]
"""`auto`: read latents where the data set has those of these weights and this size, else encode images in each step.
`require`: refuse a data set without. `no`: always encode."""


@dataclass(frozen=True, kw_only=True)
class Lmk2VideoConfig(ClipChoice):
    """Settings of data, noise and loss."""

    free_settings: ClassVar[tuple[str, ...]] = (
        "keep_in_memory_mb",
        "encode_chunk",
        "validation_clips",
        "validation_frames",
        "validation_steps",
        "validation_guidance",
    )
    """Settings that may change when a run goes on: they decide memory and what is shown, not what is learnt."""

    init: str | None = None
    """Weights of the whole pipeline to begin with: a RUN of either stage, its pretrained_model, or converted published
    weights. Their VAE and image encoder are used, too. None: as the other settings say."""
    width: int = 512
    """Width of the images in pixels. Clips of another aspect ratio are cropped around their middle."""
    height: int = 512
    """Height of the images in pixels. Both must be multiples of what VAE and networks need: 8 with Stable
    Diffusion's VAE, 4 with `tiny`."""
    min_reference_gap: int = 0
    """Smallest distance in frames from the reference to the nearest target frame, so that the reference is not almost
    the answer; clips that are too short give their farthest frames. 0: any frame, as published."""
    drop_reference: float = 0.0
    """Share of samples without the features of the reference, but with the image token."""
    drop_token: float = 0.0
    """Share of samples without the image token, but with the reference."""
    drop_both: float = 0.1
    """Share of samples without both, which is the prediction that guidance at inference leads away from. The pose is
    never dropped, and the reference's landmarks stay with it: they tell where the reference's face was, not how it
    looks."""
    noise_offset: float = 0.05
    """Strength of the noise that is the same in all positions and frames of a channel ("offset noise")."""
    snr_gamma: float | None = 5.0
    """Gamma of min-SNR weighting (arXiv 2303.09556); None: every timestep weighs the same."""
    face_weight: float = 1.0
    """Weight of the error inside the face, against 1 around it."""
    mouth_weight: float = 1.0
    """Weight of the error inside the lips' outline (times `face_weight`)."""
    use_latents: UseLatents = "auto"
    """Whether to read what `make latents` wrote instead of encoding images in each step. auto: where the data set has
    latents of these weights at this size. require: refuse a data set without. no: always encode."""
    decoder: ClipDecoder = "pyav"
    """Engine that decodes the clips. decord gives the same frames with colours one level darker."""
    keep_in_memory_mb: int = 0
    """Memory in MiB, of each reading process, for images and guidance images: if those of all training clips fit, they
    are decoded and drawn once, not in every step."""
    encode_chunk: int = 8
    """Number of images that are encoded at once where latents are not read; bounds the memory for it."""
    validation_clips: int = 1
    """Number of held-out clips that are validated, and of training clips next to them."""
    validation_frames: int = 32
    """Frames of each validated clip, from its middle."""
    validation_steps: int = 10
    """Sampling steps of the pipeline in validation."""
    validation_guidance: float = 2.0
    """Guidance scale of the pipeline in validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 8 or self.height < 8:
            raise ValueError(f"width and height must be at least 8 pixels, not {self.width}x{self.height}")
        if self.min_reference_gap < 0 or self.keep_in_memory_mb < 0:
            raise ValueError("min_reference_gap and keep_in_memory_mb must be at least 0")
        shares = (self.drop_reference, self.drop_token, self.drop_both)
        if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1:
            raise ValueError(
                "drop_reference, drop_token and drop_both are shares of the samples: each in 0 … 1, and no more than 1"
                f" together, not {', '.join(map(str, shares))}"
            )
        if not 0 <= self.noise_offset < math.inf:
            raise ValueError(f"noise_offset must be at least 0, not {self.noise_offset}")
        if self.snr_gamma is not None and not 1 <= self.snr_gamma < math.inf:
            raise ValueError(f"snr_gamma must be at least 1, or None, not {self.snr_gamma}")
        if not (0 < self.face_weight < math.inf and 0 < self.mouth_weight < math.inf):
            raise ValueError("face_weight and mouth_weight must be above 0")
        if self.encode_chunk < 1:
            raise ValueError("encode_chunk must be at least 1")
        if min(self.validation_clips, self.validation_frames, self.validation_steps) < 1:
            raise ValueError("validation_clips, validation_frames and validation_steps must be at least 1")


# --- the trainer's settings -------------------------------------------------------------------------------------------


def tiny_training(steps: int, global_batch: int, learning_rate: float) -> TrainConfig:
    """Trainer settings for small networks on a handful of clips on a CPU.

    Each rank has one thread: the operations are so small that several threads mostly wait for each other. A second core
    is better used by a second rank (`WORKERS=2`).
    """
    return TrainConfig(
        steps=steps,
        global_batch=global_batch,
        # Two microbatches, so that two ranks can share the batch.
        microbatch=global_batch // 2,
        num_workers=0,
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        ema=EmaConfig(decay=0.99),
        parallel=ParallelConfig(threads=1),
        checkpoint=CheckpointConfig(every=max(1, steps // 2)),
        validation=ValidationConfig(every=steps),
        log=LogConfig(every=20),
    )


def small_training(steps: int, global_batch: int) -> TrainConfig:
    """Trainer settings for networks of size `small` with first weights, on one GPU."""
    return TrainConfig(
        steps=steps,
        global_batch=global_batch,
        num_workers=8,
        optimizer=OptimizerConfig(learning_rate=2e-4, weight_decay=1e-2),
        schedule=ScheduleConfig(name="cosine", warmup_steps=500),
        ema=EmaConfig(decay=0.999),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every=2000),
        validation=ValidationConfig(every=5000, device="auto"),
    )


PUBLISHED_OPTIMIZER = OptimizerConfig(learning_rate=1e-5, weight_decay=1e-2)
"""AniPortrait's, in both stages: AdamW, gradients clipped to 1. It decays norms and biases, too, and has its moments in
8 bits."""


def paper_training(steps: int, global_batch: int, parallel: ParallelConfig) -> TrainConfig:
    """Trainer settings of AniPortrait: AdamW, 1e-5 constant, weight decay 1e-2, gradients clipped to 1.

    Three things differ: moments in 32 bits rather than 8, bf16 rather than fp16, and averages of the weights (decay
    0.9999), which are what is validated and exported. `--train.ema.decay 0` keeps none, as published.
    """
    return TrainConfig(
        steps=steps,
        global_batch=global_batch,
        num_workers=4,
        optimizer=PUBLISHED_OPTIMIZER,
        schedule=ScheduleConfig(warmup_steps=1),
        ema=EmaConfig(decay=0.9999),
        parallel=parallel,
        checkpoint=CheckpointConfig(every=1000),
        validation=ValidationConfig(every=5000, device="auto"),
    )
