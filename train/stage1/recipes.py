"""Recipes of stage 1."""

from __future__ import annotations

from train.config import ParallelConfig
from train.lmk2video.recipes import paper_training, small_training, tiny_training
from train.recipe import Recipe
from train.stage1.task import Stage1Config


def tiny() -> Recipe:
    """Small networks with first weights, pictures of 64 pixels, a codec that needs no training: a handful of clips on a
    CPU in minutes."""
    config = Stage1Config(
        size="tiny",
        vae="tiny",
        image_encoder="tiny",
        width=64,
        height=64,
        mouth_weight=4.0,
        keep_in_memory_mb=512,
    )
    return Recipe(config=config, train=tiny_training(steps=800, global_batch=8, learning_rate=3e-3))


def small() -> Recipe:
    """Networks of a fraction of the paper's width with first weights, pictures of 128 pixels, a codec that needs no
    training: what can be learnt without any weights to begin from, on one GPU in hours."""
    config = Stage1Config(
        size="small",
        vae="tiny",
        image_encoder="small",
        width=128,
        height=128,
        mouth_weight=2.0,
    )
    return Recipe(config=config, train=small_training(steps=60_000, global_batch=32))


def paper() -> Recipe:
    """The published settings: Stable Diffusion 1.5's sizes at 512 x 512, batches of 8 on four GPUs, AdamW 1e-5.

    Set `--config.sd15`, `--config.vae` and `--config.image_encoder` to folders with Stable Diffusion 1.5,
    sd-vae-ft-mse and the image encoder of sd-image-variations. 1.89 billion parameters are trained: weights,
    gradients and both moments take 30 GB in all, the averaged weights 7.5 GB, shared out among the ranks (FSDP2); the
    activations of two pictures come on top, and the frozen codec and CLIP (1.6 GB) where latents are not read. A
    sample costs 4.0 TFLOP forward, of which make latents saves 2.4, and twice the networks' 1.9 backward. The paper
    trained for two days on four A100; the published settings say 300,000 steps, their example loads 30,000.
    Not published: bf16, moments in 32 bits, normalisation frame by frame, attention to the reference's landmarks, 1 x 1
    layers behind each scale of the pose, conditions dropped for each sample (by zeros) rather than for a whole batch,
    no weight decay on norms and biases.
    """
    config = Stage1Config(
        size="sd15",
        vae="sd-vae-ft-mse",
        image_encoder="image_encoder",
        sd15="stable-diffusion-v1-5",
        fold_token=False,
    )
    parallel = ParallelConfig(strategy="fsdp2", precision="bf16")
    return Recipe(config=config, train=paper_training(30_000, 8, parallel))


RECIPES = {"tiny": tiny, "small": small, "paper": paper}
