"""Recipes of Audio2Mesh."""

from __future__ import annotations

from train.audio2mesh.task import Audio2MeshConfig
from train.config import (
    CheckpointConfig,
    EmaConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)
from train.recipe import Recipe


def tiny() -> Recipe:
    """A small audio encoder with random first weights: fits a handful of clips on a CPU in minutes."""
    return Recipe(
        config=Audio2MeshConfig(wav2vec="tiny", freeze_cnn=False, window_frames=50),
        train=TrainConfig(
            steps=1000,
            global_batch=8,
            microbatch=8,
            num_workers=0,
            optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
            schedule=ScheduleConfig(name="cosine", warmup_steps=100),
            ema=EmaConfig(decay=0.99),
            checkpoint=CheckpointConfig(every=250),
            validation=ValidationConfig(every=500),
        ),
    )


def paper() -> Recipe:
    """AniPortrait's: wav2vec 2.0 base, all but its CNN trained, plain L1, Adam 1e-5, slices of random length.

    Its authors train on about an hour of one actor's frontal speech, at 30 fps; here it is 25. Batch size, number of
    steps, warm-up, clipping of the gradient and averaging of the weights were not published, so those are ours. Set
    `--config.wav2vec` to a folder with wav2vec2-base-960h.
    """
    return Recipe(
        config=Audio2MeshConfig(wav2vec="wav2vec2-base-960h", window_frames=250, min_window_frames=50),
        train=TrainConfig(
            steps=50_000,
            global_batch=8,
            microbatch=8,
            optimizer=OptimizerConfig(name="adam", learning_rate=1e-5),
            schedule=ScheduleConfig(warmup_steps=500),
            ema=EmaConfig(decay=0.9995),
            checkpoint=CheckpointConfig(every=1000),
            validation=ValidationConfig(every=5000),
        ),
    )


RECIPES = {"tiny": tiny, "paper": paper}
