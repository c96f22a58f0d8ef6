"""Recipes of stage 2."""

from __future__ import annotations

from train.config import ParallelConfig
from train.lmk2video.recipes import paper_training, small_training, tiny_training
from train.recipe import Recipe
from train.stage2.task import Stage2Config


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
    """The published settings: windows of 16 frames at 512 x 512 (of every frame, or of every fourth), batches of 4 on
    four GPUs, AdamW 1e-5, 40,000 steps, motion modules that begin as AnimateDiff's.

    Set `--config.stage1` to the RUN of stage 1 and `--config.motion_module` to mm_sd_v15_v2.ckpt. 453 million of 2.3
    billion parameters are trained: weights take 9.4 GB, gradients and moments 5.4 GB, averaged weights 1.8 GB on each
    GPU; activations are computed again in the backward pass. A sample costs 23 TFLOP forward, and 19 more for encoding
    its pictures where latents are not read: run make latents first. The paper trained for two days on four A100.
    Not published: bf16, moments in 32 bits.
    """
    config = Stage2Config(stage1="stage1", motion_module="mm_sd_v15_v2.ckpt")
    parallel = ParallelConfig(precision="bf16", activation_checkpointing=True)
    return Recipe(config=config, train=paper_training(40_000, 4, parallel))


RECIPES = {"tiny": tiny, "small": small, "paper": paper}
