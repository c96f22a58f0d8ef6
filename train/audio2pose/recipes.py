"""Recipes of Audio2Pose."""

from __future__ import annotations

import dataclasses

from train.audio2pose.task import Audio2PoseConfig
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
    """A small encoder and decoder with random first weights: fits a handful of clips on a CPU in minutes."""
    return Recipe(
        config=Audio2PoseConfig(
            wav2vec="tiny",
            freeze_cnn=False,
            width=128,
            layers=2,
            heads=4,
            feed_forward=256,
            num_identities=16,
            window_frames=75,
            history_noise=1.0,
        ),
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
    """The paper's: wav2vec 2.0 base, an eight-layer decoder that looks at a window of the speech, L1, Adam 1e-5, HDTF.

    Ours are: poses about the clip's rest pose, in standard deviations; a bounded past with a repeating position code;
    noise on the history; no dropout; 25 fps; batch size, number of steps, warm-up, clipping of the gradient and
    averaging of the weights, which were not published. Set `--config.wav2vec` to a folder with wav2vec2-base-960h.
    """
    return Recipe(
        config=Audio2PoseConfig(wav2vec="wav2vec2-base-960h"),
        train=TrainConfig(
            steps=100_000,
            global_batch=8,
            microbatch=8,
            optimizer=OptimizerConfig(name="adam", learning_rate=1e-5),
            schedule=ScheduleConfig(warmup_steps=500),
            ema=EmaConfig(decay=0.9995),
            checkpoint=CheckpointConfig(every=1000),
            validation=ValidationConfig(every=5000),
        ),
    )


def compat() -> Recipe:
    """The published network's attention: each frame sees its own audio feature only (a diagonal mask), 600 positions
    counted from the window's start, poses relative to the first frame, no noise on the history."""
    recipe = paper()
    config = dataclasses.replace(
        recipe.config,
        memory_attention="diagonal",
        context=None,
        position_period=600,
        pose_origin="first",
        history_noise=0.0,
        normalise_pose=False,
        window_frames=250,
        min_window_frames=50,
    )
    return dataclasses.replace(recipe, config=config)


RECIPES = {"tiny": tiny, "paper": paper, "compat": compat}
