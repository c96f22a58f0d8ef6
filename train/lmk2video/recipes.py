"""Training settings that the recipes of both stages share."""

from __future__ import annotations

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


def tiny_training(steps: int, global_batch: int, learning_rate: float) -> TrainConfig:
    """For small networks on a handful of clips on a CPU.

    One thread for each rank: operations are so small that threads mostly wait for each other. A second core is better
    used by a second rank (`WORKERS=2`).
    """
    return TrainConfig(
        steps=steps,
        global_batch=global_batch,
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
    """For networks of size `small` with first weights, on one GPU."""
    return TrainConfig(
        steps=steps,
        global_batch=global_batch,
        microbatch=global_batch,
        num_workers=8,
        optimizer=OptimizerConfig(learning_rate=2e-4, weight_decay=1e-2),
        schedule=ScheduleConfig(name="cosine", warmup_steps=500),
        ema=EmaConfig(decay=0.999),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every=2000),
        validation=ValidationConfig(every=5000, device="auto"),
    )


def paper_training(steps: int, global_batch: int, parallel: ParallelConfig) -> TrainConfig:
    """AniPortrait's optimizer: AdamW, 1e-5 constant, weight decay 1e-2, gradients clipped to 1, no averaged weights.

    Ours are: moments in 32 bits rather than 8, bf16 rather than fp16.
    """
    return TrainConfig(
        steps=steps,
        global_batch=global_batch,
        microbatch=global_batch // 4,
        num_workers=4,
        optimizer=OptimizerConfig(learning_rate=1e-5, weight_decay=1e-2),
        schedule=ScheduleConfig(warmup_steps=1),
        ema=EmaConfig(decay=0.0),
        parallel=parallel,
        checkpoint=CheckpointConfig(every=1000),
        validation=ValidationConfig(every=5000, device="auto"),
    )
