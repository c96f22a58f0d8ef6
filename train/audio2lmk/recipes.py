"""Training settings that the recipes of the speech models share."""

from __future__ import annotations

from train.config import (
    CheckpointConfig,
    EmaConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)


def tiny_training() -> TrainConfig:
    """For a small model with random first weights on a handful of clips: minutes on a CPU."""
    return TrainConfig(
        steps=1000,
        global_batch=8,
        microbatch=8,
        num_workers=0,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        ema=EmaConfig(decay=0.99),
        checkpoint=CheckpointConfig(every=250),
        validation=ValidationConfig(every=500),
    )


def paper_training(steps: int) -> TrainConfig:
    """AniPortrait's Adam with 1e-5. Batch size, warm-up, clipping of the gradient and averaging of the weights were not
    published, so those are ours."""
    return TrainConfig(
        steps=steps,
        global_batch=8,
        microbatch=8,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-5),
        schedule=ScheduleConfig(warmup_steps=500),
        ema=EmaConfig(decay=0.9995),
        checkpoint=CheckpointConfig(every=1000),
        validation=ValidationConfig(every=5000),
    )
